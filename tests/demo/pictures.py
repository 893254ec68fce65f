"""The pictures of the stories in the documentation: `python -m tests.demo.pictures` tells them, and draws them again."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from traced_tasks.demo.story import tell
from traced_tasks.demo.svg import NARROW, WIDE, save_svg
from traced_tasks.demo.timeline import Timeline

DOCS = Path(__file__).parents[2] / "docs"


def save(name: str, shown: Sequence[RenderableType]) -> None:
    """Write a picture, in both widths."""
    for suffix, width in ((".svg", WIDE), (".narrow.svg", NARROW)):
        save_svg(DOCS / (name + suffix), shown, width)


def before_and_after(shown: Sequence[RenderableType]) -> list[RenderableType]:
    """Return what the start page shows of the story `lost`: its first two chapters, and one line of the log."""
    before, after, *_ = [part for part in shown if isinstance(part, Timeline)]
    before.logged = []
    after.logged = [line for line in after.logged if "update_crm was skipped" in line]
    after.counted = []
    return [before, "", after]


if __name__ == "__main__":
    for story, picture in (("checkout", "timeline"), ("lost", "lost")):
        told = tell(Console(file=io.StringIO()), story)
        save(picture, told)
        if story == "lost":
            save("start", before_and_after(told))
