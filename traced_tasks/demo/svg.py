"""What was shown in the terminal, as an SVG file."""

import io
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType

# rich's own template loads a font from a remote host. A picture in a README should load nothing.
# With 21 pixels, one line's box-drawing characters meet those of the next.
_TEMPLATE = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>python -m traced_tasks</title>
<style>
.{unique_id}-matrix {{
    font-family: "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace;
    font-size: 21px;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def save_svg(path: Path, shown: Iterable[RenderableType], width: int = 100) -> None:
    """Draw what was shown as an SVG file, which loads nothing from elsewhere.

    Args:
        path: The file. One that exists is replaced.
        shown: What was printed.
        width: The width of the picture in characters.

    Raises:
        OSError: The file could not be written.
    """
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(
        record=True, file=file, width=width, force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    for renderable in shown:
        console.print(renderable, highlight=False)
    svg = console.export_svg(
        title="python -m traced_tasks", code_format=_TEMPLATE, font_aspect_ratio=0.602, unique_id="traced-tasks"
    )
    # Whatever the font at hand: stretched to its place, so that bars have no gaps and columns stay columns.
    svg = svg.replace(" textLength=", ' lengthAdjust="spacingAndGlyphs" textLength=')
    path.write_text(svg, encoding="utf-8")
