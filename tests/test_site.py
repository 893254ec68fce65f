"""The documentation as it is built: the files for language models, the search, the API."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import DOCS, EXAMPLES
from traced_tasks import TaskTracing


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-B", "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=DOCS.parent,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def test_llms(site: Path) -> None:
    """`llms.txt` has a line for each page, with a link that leads to what is written there."""
    listed = re.findall(r"^- \[(.+)\]\((\S+)\)", (site / "llms.txt").read_text(), re.MULTILINE)

    assert {link.replace("api/", "api.md") for _, link in listed} == {page.name for page in DOCS.glob("*.md")}
    for title, link in listed:
        page = site / link
        text = (page / "index.html" if page.is_dir() else page).read_text()
        assert title in text or title == "Start"


def test_llms_full(site: Path) -> None:
    """`llms-full.txt` has the pages with all programs and outputs that they quote, and no drawings."""
    text = (site / "llms-full.txt").read_text()
    quoted = in_one_line(text)

    assert "--8<--" not in text
    assert "<svg" not in text
    for example in (*EXAMPLES.glob("**/*.py"), *EXAMPLES.glob("**/*.txt")):
        assert in_one_line(example.read_text()) in quoted, example
    for page in DOCS.glob("*.md"):
        last = in_one_line(page.read_text().splitlines()[-1])
        assert page.name == "api.md" or last in quoted or page.name == "changelog.md"


def test_search(site: Path) -> None:
    """The search finds headings, and messages that stand in blocks of output."""
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    titles = {each["title"] for each in index}
    texts = [each["text"] for each in index]

    assert "The handler raised" in titles
    for message in ("was skipped: earlier_failed.charge", "add_task takes a function and its arguments"):
        assert any(message in text for text in texts)


def test_api(site: Path) -> None:
    """The API has the options, and nothing of what pydantic adds to them."""
    headings = re.findall(r'<h4 id="traced_tasks\.TaskTracing\.(\w+)"', (site / "api" / "index.html").read_text())

    assert headings == list(TaskTracing.model_fields)
