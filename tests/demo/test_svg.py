"""The pictures: what a terminal shows, drawn so that any program shows it alike."""

import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from tests.demo.made import REQUEST, context, made, spans, task
from traced_tasks.demo import story
from traced_tasks.demo.svg import NARROW, WIDE, save_svg
from traced_tasks.demo.timeline import Timeline

ROOT = Path(__file__).parents[2]
DRAWN = "─━┄│┿┝┥╸╺╭╮╰╯├└✗✓"
TIMELINE = Timeline(
    "A title with <angle> & brackets",
    "A sentence that is rather long, for it has to be broken once where there is little room, and so it goes on.",
    spans(
        REQUEST,
        task("charge", 151, 400, error="PaymentError"),
        task("update", 100, 401, span_id=3, error="skipped"),
        made("GET", 152, 800, context=context(4), parent=context(2)),
    ),
    200_000_000,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.svg"


def elements(path: Path, name: str) -> Iterator[ElementTree.Element]:
    return ElementTree.fromstring(path.read_text(encoding="utf-8")).iter(f"{{http://www.w3.org/2000/svg}}{name}")


def colours(path: Path) -> dict[str, set[str]]:
    """The colours, each with the text that has it."""
    found: dict[str, set[str]] = {}
    for element in elements(path, "text"):
        found.setdefault(element.attrib["fill"], set()).add(element.text or "")
    return found


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_texts(path: Path, width: int) -> None:
    """Each text stands where it stands in the terminal, and is as long; all else is drawn."""
    file = StringIO()
    Console(file=file, width=width).print(TIMELINE)
    lines = [list(line) for line in file.getvalue().splitlines()]
    save_svg(path, [TIMELINE], width)
    for element in elements(path, "text"):
        text, row, column = element.text or "", int(element.attrib["y"]) // 20, int(element.attrib["x"]) // 10
        assert "".join(lines[row][column : column + len(text)]) == text
        assert int(element.attrib["textLength"]) == 10 * len(text)
        assert len(text.split()) <= 4
        lines[row][column : column + len(text)] = " " * len(text)
    assert set("".join(map("".join, lines))) <= set(DRAWN + " ")


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("━━━", ["M0 10h30"]),
        (" ╺━", ["M15 10l5 0", "M25 10l-5 0M25 10l5 0"]),
        ("╭──", ["M5 10l5 0M5 10l0 10", "M10 10h20"]),
        ("┝", ["M5 10l0 -10M5 10l0 10", "M5 10l5 0"]),
        ("┄┄", ["M0 10h20"]),
        ("✓", ["M5 10m-4 0 3 4 5-8"]),
    ],
)
def test_lines(path: Path, text: str, paths: list[str]) -> None:
    """Lines go from the middle of a cell to its edge, where those of the next begin."""
    save_svg(path, [Text(text)])
    assert [element.attrib["d"] for element in elements(path, "path")] == paths
    assert list(elements(path, "text")) == []


def test_bar_of_a_lost_task(path: Path) -> None:
    """The bar of a task that never ran is one dashed line, up to the response and from there on."""
    save_svg(path, [TIMELINE])
    dashed = [element.attrib["d"] for element in elements(path, "path") if "stroke-dasharray" in element.attrib]
    assert [re.sub(r"^M\d+ \d+h", "", path) for path in dashed] == ["50", "100"]


def test_other_characters(path: Path) -> None:
    """What is neither a line nor a word is a text as well, and stands by itself."""
    save_svg(path, [Text("a → b")])
    assert [(element.text, element.attrib["x"]) for element in elements(path, "text")] == [
        ("a", "0"),
        ("→", "20"),
        ("b", "40"),
    ]


def test_contrast(path: Path) -> None:
    """All text can be read: its contrast to the background is 4.5 or more."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shown: list[RenderableType] = [
        TIMELINE,
        *(Text("x", style) for style in ("blue", "cyan", "magenta", "yellow", "green", "bright_black", "dark_orange")),
    ]
    save_svg(path, shown)
    (background,) = {element.attrib["fill"] for element in elements(path, "rect")}
    found = colours(path)
    assert len(found) == 9
    assert {
        colour: texts
        for colour, texts in found.items()
        if (luminance(colour) + 0.05) / (luminance(background) + 0.05) < 4.5
    } == {}


def test_any_terminal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture has its colours whatever the terminal has."""
    save_svg(path, [TIMELINE])
    before = path.read_text(encoding="utf-8")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "40")
    save_svg(path, [TIMELINE])
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("suffix", [".svg", ".narrow.svg"])
@pytest.mark.parametrize(("name", "picture"), [("checkout", "timeline"), ("lost", "lost")])
def test_pictures_of_the_documentation(name: str, picture: str, suffix: str) -> None:
    """They show the stories as they are told today, and load nothing: neither a font nor a style from elsewhere."""
    path = ROOT / "docs" / (picture + suffix)
    text = " ".join(element.text or "" for element in elements(path, "text"))
    with story.STORIES[name]() as told:
        chapters = [part for chapter in told.chapters for part in (chapter.title, chapter.text)]
        for sentence in told.introduction, *chapters, *(claim.text for claim in told.verdict):
            assert sentence in text
    source = path.read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\"]*|@import|@font-face|url\(", source) == ["http://www.w3.org/2000/svg"]
