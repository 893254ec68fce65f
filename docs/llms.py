"""What is written for language models, see https://llmstxt.org.

That is `llms.txt`, a list of the pages; each page as it was written, with
its programs, beside it; and `llms-full.txt`, all of these in one.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

_pages: list[Page] = []


def on_nav(nav: Navigation, **_: Any) -> None:
    """Keep the pages, which have been read when the build is done."""
    _pages[:] = nav.pages


def on_post_build(config: MkDocsConfig) -> None:
    """Write the files into the site."""
    site, root = Path(config.site_dir), config.site_url or ""
    start = next(page for page in _pages if page.is_homepage)
    about = dict(
        re.findall(
            r"^\* \[.+?\]\((\S+)\): (.+)$", _text(start), re.MULTILINE
        )
    )
    listed, whole = "", ""
    for page in _pages:
        name = page.file.src_uri
        line = f"- [{page.title}]({root}{name}): {about.get(name, '')}"
        if "\n::: " in _text(page):  # only the HTML has the docstrings
            line = line.replace(f"({root}{name})", f"({root}{page.url})")
        else:
            text = _with_programs(_text(page), config)
            (site / name).write_text(text)
            whole += f"{text.strip()}\n\n"
        listed += f"{line.removesuffix(': ')}\n"
    title = f"# {config.site_name}\n\n> {config.site_description}\n\n"
    (site / "llms.txt").write_text(f"{title}## Pages\n\n{listed}")
    (site / "llms-full.txt").write_text(whole)


def _text(page: Page) -> str:
    return page.markdown or ""


def _with_programs(text: str, config: MkDocsConfig) -> str:
    """Put in what a page quotes, but for drawings."""
    folders = Path(config.docs_dir), Path(config.docs_dir).parent

    def quoted(match: re.Match[str]) -> str:
        files = [folder / match["path"] for folder in folders]
        content = next(
            file for file in files if file.exists()
        ).read_text()
        return textwrap.indent(content.rstrip(), match["indent"])

    text = re.sub(
        r'<div class="picture">.*?</div>\n', "", text, flags=re.S
    )
    quote = re.compile(r'^(?P<indent> *)--8<-- "(?P<path>.+)"$', re.M)
    return quote.sub(quoted, text)
