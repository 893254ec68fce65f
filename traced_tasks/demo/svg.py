"""What was shown in the terminal, as an SVG file.

Rule 1: It loads nothing, so the font is whichever the reader has.

Rule 2: Where columns have to meet, no font is relied on: lines, bars and marks are drawn, and each text that stands by
itself has a place of its own. Not every program that draws SVG knows `textLength`, which does the rest.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from rich.console import Console, Group, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme

WIDE, NARROW = 100, 52
"""The widths of a picture in characters: for a page, and for the screen of a telephone."""

_CELL, _LINE, _MARGIN = 10, 20, 10
_FONT_SIZE = _CELL / 0.602  # which is how wide a character is in DejaVu Sans Mono, Menlo, and nearly in most others

# All of it can be read on the background (a contrast of 4.5 and more).
_BACKGROUND, _FOREGROUND = (22, 27, 34), (230, 237, 243)
_COLOURS = [
    (139, 148, 158),
    (255, 123, 114),
    (86, 211, 100),
    (227, 179, 65),
    (121, 192, 255),
    (210, 168, 255),
    (86, 212, 221),
    (230, 237, 243),
]
_THEME = TerminalTheme(_BACKGROUND, _FOREGROUND, _COLOURS, _COLOURS)

# From the middle of its cell, a line goes left, right, up or down: as a heavy one where the letter is a capital.
_ARMS = {
    "─": "lr", "│": "ud", "╭": "rd", "╮": "ld", "╰": "ru", "╯": "lu", "├": "udr", "└": "ur",
    "━": "LR", "╸": "L", "╺": "R", "┝": "udR", "┥": "udL", "┿": "udLR", "┄": "lr",
}  # fmt: skip
_ENDS = {"l": (-_CELL / 2, 0), "r": (_CELL / 2, 0), "u": (0, -_LINE / 2), "d": (0, _LINE / 2)}
_MARKS = {"✗": "m-4-4 8 8m0-8-8 8", "✓": "m-4 0 3 4 5-8"}
_LIGHT, _HEAVY = 1.2, 4


def save_svg(path: Path, shown: Iterable[RenderableType], width: int = WIDE) -> None:
    """Draw what was shown as an SVG file, which loads nothing from elsewhere.

    Args:
        path: The file. One that exists is replaced.
        shown: What was printed.
        width: The width of the picture in characters.

    Raises:
        OSError: The file could not be written.
    """
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    # The height is of no use, but without it the width is not taken where the environment says that TERM is dumb.
    console = Console(file=file, width=width, height=100, force_terminal=True, legacy_windows=False)
    lines = console.render_lines(Group(*shown), pad=False)
    size = f"{width * _CELL + 2 * _MARGIN} {len(lines) * _LINE + 2 * _MARGIN}"
    drawn = "\n".join(element for row, line in enumerate(lines) for element in _draw(line, row))
    path.write_text(
        f'<svg viewBox="0 0 {size}" xmlns="http://www.w3.org/2000/svg" role="img">\n'
        "<title>python -m traced_tasks</title>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{_rgb(_BACKGROUND)}"/>\n'
        f'<g font-family="monospace" font-size="{_FONT_SIZE:.2f}" '
        f'transform="translate({_MARGIN} {_MARGIN})">\n{drawn}\n</g>\n</svg>\n',
        encoding="utf-8",
    )


def _draw(line: Sequence[Segment], row: int) -> Iterator[str]:
    column = 0
    for segment in Segment.simplify(line):
        style = segment.style or Style()
        colour = _rgb(style.color.get_truecolor(_THEME) if style.color else _FOREGROUND)
        # Alike characters in a row are one line. A text is no longer than four words, whose place is then right again.
        for part in re.finditer(r"([─━┄])\1*|[^\w\s!-~…]|(?: ?[\w!-~…]+){1,4}", segment.text):
            text = part.group()
            place = column + part.start()
            if text[0] in _ARMS:
                yield from _lines(text, place, row, colour)
            elif text in _MARKS:
                yield _path(_middle(place, row) + _MARKS[text], colour, 2)
            else:
                yield _text(text, place, row, colour, style.bold)
        column += segment.cell_length


def _text(text: str, column: int, row: int, colour: str, bold: bool | None) -> str:
    x = (column + len(text) - len(text.lstrip())) * _CELL
    text = text.lstrip()
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{row * _LINE + 15}" fill="{colour}"{weight} '
        f'textLength="{len(text) * _CELL}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
    )


def _lines(text: str, column: int, row: int, colour: str) -> Iterator[str]:
    arms = _ARMS[text[0]]
    if len(text) > 1:
        dashes = ' stroke-dasharray="3 3"' if text[0] == "┄" else ""
        start = f"M{column * _CELL} {row * _LINE + _LINE / 2:g}"
        yield _path(f"{start}h{len(text) * _CELL}", colour, _HEAVY if arms.isupper() else _LIGHT, dashes)
        return
    for heavy, group in groupby(arms, str.isupper):
        ends = [_ENDS[arm.lower()] for arm in group]
        lines = "".join(f"{_middle(column, row)}l{x:g} {y:g}" for x, y in ends)
        yield _path(lines, colour, _HEAVY if heavy else _LIGHT)


def _middle(column: int, row: int) -> str:
    return f"M{column * _CELL + _CELL / 2:g} {row * _LINE + _LINE / 2:g}"


def _path(path: str, colour: str, width: float, more: str = "") -> str:
    return f'<path d="{path}" stroke="{colour}" stroke-width="{width}" fill="none"{more}/>'


def _rgb(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
