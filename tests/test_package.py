"""What is published stands by itself."""

import email
import re
import shutil
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling import build
from readme_renderer import markdown

import traced_tasks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


class Addresses(HTMLParser):
    """All that a page links to or shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src", "srcset")]


def built(project: Path, monkeypatch: pytest.MonkeyPatch, to: Path) -> ZipFile:
    """Build a project's wheel, as pip does."""
    monkeypatch.chdir(project)
    return ZipFile(to / build.build_wheel(str(to)))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZipFile:
    """The wheel that this repository makes."""
    return built(ROOT, monkeypatch, tmp_path)


def contents(wheel: ZipFile) -> dict[str, bytes]:
    """The files of a wheel."""
    return {name: wheel.read(name) for name in wheel.namelist()}


def long_description(wheel: ZipFile) -> str:
    """What a package index shows of a wheel."""
    (metadata,) = (file for name, file in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    return str(email.message_from_string(metadata.decode()).get_payload())


def test_the_long_description_has_no_file_beside_it(wheel: ZipFile) -> None:
    """Where a package index renders it, each link and picture leads to the web, or to a heading of the page itself."""
    page = markdown.render(long_description(wheel))

    assert page
    assert [address for address in Addresses(page).found if not address.startswith(("https://", "#"))] == []


def test_the_long_description_is_the_readme(wheel: ZipFile) -> None:
    """It has the README's headings and code, unchanged."""
    for part in r"(?m)^#+ .*", r"(?ms)^```.*?^```":
        assert re.findall(part, long_description(wheel)) == re.findall(part, README)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("One.\n\n![A picture](docs/a.svg)\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n[![A picture](docs/a.svg)](docs/a.md)\n\nTwo.", "One.\n\nTwo."),
        ('One.\n\n<img alt="A picture" src="docs/a.svg">\n\nTwo.', "One.\n\nTwo."),
        (
            'One.\n\n<picture>\n  <source srcset="docs/dark.svg">\n  <img src="docs/a.svg">\n</picture>\n\nTwo.',
            "One.\n\nTwo.",
        ),
        ("See [the\nlist](docs/a.md).", "See the\nlist (`docs/a.md`)."),
        ("See [`b`](docs/a.md#part-b).", "See `b` (`docs/a.md`)."),
        ('See <a href="docs/a.md">the list</a>.', "See the list (`docs/a.md`)."),
        ("See [Options](#options).", "See [Options](#options)."),
        ("See [FastAPI](https://fastapi.tiangolo.com/).", "See [FastAPI](https://fastapi.tiangolo.com/)."),
        ("![Built](https://example.com/a.svg)", "![Built](https://example.com/a.svg)"),
    ],
)
def test_links_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, shown: str) -> None:
    """A picture from the repository is left out, a link into it names the file, and what leads to the web stays."""
    (tmp_path / "traced_tasks").mkdir()
    for name in "pyproject.toml", "LICENSE", "traced_tasks/_version.py":
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text(written)

    assert long_description(built(tmp_path, monkeypatch, tmp_path)) == shown


def test_the_wheel_has_the_package_and_nothing_else(wheel: ZipFile) -> None:
    """Every file of the package is in the wheel, the marker of its types as well, and no test is."""
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "traced_tasks").rglob("*.*")}
    metadata = f"traced_tasks-{traced_tasks.__version__}.dist-info/"

    names = {name for name in contents(wheel) if not name.startswith(metadata)}
    assert names == {name for name in package if "__pycache__" not in name}
    assert "traced_tasks/py.typed" in names


def test_the_source_distribution_builds_the_same_wheel(
    wheel: ZipFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who packages it from the source distribution gets the same wheel, and has the tests and all that they read."""
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"traced_tasks-{traced_tasks.__version__}"

    (tmp_path / "again").mkdir()
    again = built(unpacked, monkeypatch, tmp_path / "again")

    assert contents(again) == contents(wheel)
    assert {path.name for path in unpacked.iterdir()} > {"tests", "docs", "noxfile.py", "README.md", "CHANGELOG.md"}
