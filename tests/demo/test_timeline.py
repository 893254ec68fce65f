"""How spans are drawn."""

import re
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from tests.demo.made import REQUEST, TASK, context, made, spans
from traced_tasks.demo.timeline import Timeline

Draw = Callable[..., str]

GET = made("GET", 150, 750, context=context(2), parent=context(1), kind=SpanKind.CLIENT)


def timeline(*recorded: ReadableSpan, answered: float = 150) -> Timeline:
    return Timeline("A title", "A sentence.", spans(*recorded), round((answered + 1) * 1_000_000))


def line(drawn: str, name: str) -> str:
    """The line of the span with this name, without the frame."""
    (found,) = [line[2:-2] for line in drawn.splitlines() if re.match(rf"\W+{re.escape(name)} .*\d ms [^a-z]*$", line)]
    return found


def test_tree_and_numbers(draw: Draw) -> None:
    """A span's line has its place in the tree, its kind, its start and its duration."""
    drawn = draw(timeline(REQUEST, GET))
    assert line(drawn, "POST /checkout").split()[:7] == ["POST", "/checkout", "server", "0.0", "ms", "150", "ms"]
    assert line(drawn, "GET").split()[:7] == ["└──", "GET", "client", "150", "ms", "600", "ms"]


@pytest.mark.parametrize("width", [80, 120])
def test_bars_to_scale(draw: Draw, width: int) -> None:
    """Bars are to scale, and the moment of the response is a line through all of them."""
    drawn = draw(timeline(REQUEST, GET, answered=300), width)
    request, get = line(drawn, "POST /checkout"), line(drawn, "GET")
    bars = len(get) - get.index("━")  # from 150 ms to the end
    assert re.sub("[^━]", "", request) in ("━" * (bars // 4), "━" * (bars // 4 - 1), "━" * (bars // 4 + 1))
    assert get.index("┿") == line(drawn, "response at the client").index("│")


def test_same_columns(draw: Draw) -> None:
    """The bars of one chapter stand below those of another."""
    task = made("background_task notify", 150, 750, context=context(2), parent=context(1), attributes=TASK)
    plain, traced = draw(timeline(REQUEST, GET)), draw(timeline(REQUEST, task))
    assert line(plain, "POST /checkout") == line(traced, "POST /checkout")


def test_nothing_too_long(draw: Draw) -> None:
    """Every line is as wide as the terminal, and a name that does not fit is seen to be cut."""
    drawn = draw(timeline(made("a name that is " + "very " * 20 + "long", 0, 1, context=context(1))))
    assert {len(line) for line in drawn.splitlines()} == {80}
    assert "…" in drawn


def test_short_spans_are_seen(draw: Draw) -> None:
    """A span that took no time has a bar, wherever it is."""
    drawn = draw(
        timeline(
            REQUEST,
            made("first", 0, 0, context=context(2), parent=context(1)),
            made("last", 150, 150, context=context(3), parent=context(1)),
            answered=75,
        )
    )
    assert set("╸╺") & set(line(drawn, "first"))
    assert set("╸╺") & set(line(drawn, "last"))


def test_no_time_at_all(draw: Draw) -> None:
    """A trace that took no time at all can be drawn."""
    assert "0.0 ms" in line(draw(timeline(made("flash", 5, 5, context=context(1)), answered=5)), "flash")


def test_wrong(draw: Draw) -> None:
    """What is wrong is said beneath the bars."""
    drawn = draw(timeline(REQUEST, GET))
    assert "✗ GET ends 600 ms after its parent POST /checkout" in drawn
    assert "✓" not in drawn


def test_right(draw: Draw) -> None:
    """Where nothing is wrong, that is said."""
    assert "✓ every span lies within its parent" in draw(timeline(REQUEST))


def test_links(draw: Draw) -> None:
    """Both traces stand on one axis, and a link is named after the span that it goes to."""
    task = made("task", 150, 750, context=context(2, trace=2), attributes=TASK, links=[context(1), context(9)])
    below = made("GET", 160, 740, context=context(3, trace=2), parent=context(2, trace=2))
    other = made("other", 700, 740, context=context(4, trace=2), parent=context(8, trace=2, remote=True))
    drawn = draw(timeline(REQUEST, task, below, other))
    assert drawn.count("trace 0000") == 2
    assert "linked to POST /checkout" in drawn
    assert "linked to another trace" in drawn
    assert line(drawn, "POST /checkout").index("━") < line(drawn, "task").index("━")
    assert line(drawn, "└── GET").index("━") > line(drawn, "task").index("━") - 1


def test_failed(draw: Draw) -> None:
    """A span that failed says so, with the type of its error if it has one."""
    drawn = draw(
        timeline(
            made("first", 0, 10, context=context(1), attributes={**TASK, "error.type": "ValueError"}, failed=True),
            made("second", 0, 10, context=context(2), attributes={**TASK, "error.type": "skipped"}, failed=True),
            made("third", 0, 10, context=context(3), failed=True),
        )
    )
    assert [text.split()[1:3] for text in drawn.splitlines() if "failed:" in text] == [
        ["failed:", "ValueError"],
        ["failed:", "skipped"],
        ["failed:", "error"],
    ]


def test_ascii(draw: Draw) -> None:
    """Where the encoding has nothing to draw with, letters and dashes do."""
    drawn = draw(timeline(REQUEST, GET), encoding="ascii")
    assert drawn.isascii()
    assert "`-- GET" in drawn
    assert "|===" in line(drawn, "GET")
    assert "x GET ends 600 ms after its parent POST /checkout" in drawn
    assert "+ every span lies within its parent" in draw(timeline(REQUEST), encoding="ascii")
