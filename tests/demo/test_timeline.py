"""How spans are drawn."""

import io
import re
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from rich.console import Console
from rich.panel import Panel

from tests.demo.made import REQUEST, TASK, context, handed_over, made, spans, task
from traced_tasks.demo.timeline import Timeline

Draw = Callable[..., str]

GET = made("GET", 150, 750, context=context(2), parent=context(1), kind=SpanKind.CLIENT)


def timeline(*recorded: ReadableSpan, answered: float = 150) -> Timeline:
    return Timeline("A title", "A sentence.", spans(*recorded), round((answered + 1) * 1_000_000))


LOST = timeline(
    REQUEST,
    task("charge", 151, 400, error="PaymentError"),
    task("update", 100, 401, span_id=3, error="skipped"),
)


def line(drawn: str, name: str) -> str:
    """The line of the span with this name, without the frame."""
    (found,) = [line[2:-2] for line in drawn.splitlines() if re.match(rf"\W+{re.escape(name)} .*\d ms [^a-z]*$", line)]
    return found


def test_tree_and_numbers(draw: Draw) -> None:
    """A span's line has its place in the tree, its kind, its start and its duration."""
    drawn = draw(timeline(REQUEST, GET), 100)
    assert line(drawn, "POST /checkout").split()[:7] == ["POST", "/checkout", "server", "0.0", "ms", "150", "ms"]
    assert line(drawn, "GET").split()[:7] == ["└──", "GET", "client", "150", "ms", "600", "ms"]


def test_less_room(draw: Draw) -> None:
    """Below 100 columns a span's kind gives way to its bar."""
    drawn = draw(timeline(REQUEST, GET), 80)
    assert "kind" not in drawn
    assert line(drawn, "GET").split()[:6] == ["└──", "GET", "150", "ms", "600", "ms"]


def test_narrow(draw: Draw) -> None:
    """On a telephone a bar has a line of its own, as wide as there is."""
    drawn = draw(timeline(REQUEST, GET, answered=300), 44)
    inner = [text[2:-2] for text in drawn.splitlines()[3:11]]
    assert inner[:2] == ["0         200        400        600 ms  ", "trace 00000000                          "]
    assert inner[2:] == [
        "POST /checkout                    150 ms",
        "━━━━━━━━        │                       ",
        "└── GET                           600 ms",
        "        ━━━━━━━━┿━━━━━━━━━━━━━━━━━━━━━━━",
        "response at the client            300 ms",
        "                │                       ",
    ]
    assert {len(text) for text in drawn.splitlines()} == {44}


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
    plain, traced = draw(timeline(REQUEST, GET)), draw(timeline(REQUEST, task("notify", 150, 750)))
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
    root = made("task", 150, 750, context=context(2, trace=2), scope=TASK, links=[context(1), context(9)])
    below = made("GET", 160, 740, context=context(3, trace=2), parent=context(2, trace=2))
    other = made("other", 700, 740, context=context(4, trace=2), parent=context(8, trace=2, remote=True))
    drawn = draw(timeline(REQUEST, root, below, other))
    assert drawn.count("trace 0000") == 2
    assert "linked to POST /checkout" in drawn
    assert "linked to another trace" in drawn
    assert line(drawn, "POST /checkout").index("━") < line(drawn, "task").index("━")
    assert line(drawn, "└── GET").index("━") > line(drawn, "task").index("━") - 1


def test_worker(draw: Draw) -> None:
    """The time on the broker has a line of its own, and where the worker begins is said."""
    drawn = draw(timeline(REQUEST, *handed_over(160, 400)))
    assert [text[2:32].rstrip() for text in drawn.splitlines()[6:12]] == [
        "└── send notify",
        "    on the broker",
        "    └── background_task notify",
        "        in the worker",
        "        └── GET",
        "response at the client",
    ]
    on_the_broker = line(drawn, "on the broker")
    assert on_the_broker.split()[3:7] == ["160", "ms", "240", "ms"]
    assert "┄" in on_the_broker
    assert "━" not in on_the_broker


def test_worker_without_parent(draw: Draw) -> None:
    """Where the hand-over is not known, nor is the time on the broker."""
    drawn = draw(timeline(REQUEST, *handed_over(160, 400, parent=context(9, remote=True))))
    assert "in the worker" in drawn
    assert "on the broker" not in drawn


def test_colour_of_worker() -> None:
    """The spans of the worker, and no others, have its colour."""
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system="256")
    console.print(timeline(REQUEST, *handed_over(160, 400)))
    coloured = re.findall(r"\x1b\[38;5;208m([^\x1b]+)", file.getvalue())
    assert [text for text in coloured if text.strip(" ━╺╸")] == ["background_task notify", "in the worker", "GET"]


def test_failed(draw: Draw) -> None:
    """A span that failed says so, with the class of its error if it has one."""
    drawn = draw(
        timeline(
            made("first", 0, 10, context=context(1), error="shop.errors.PaymentError"),
            made("second", 0, 10, context=context(2), error="ValueError"),
            made("third", 0, 10, context=context(3), error=""),
        )
    )
    assert re.findall(r"failed: (\w+)", drawn) == ["PaymentError", "ValueError", "error"]


@pytest.mark.parametrize(("encoding", "bar", "lost_bar"), [("utf-8", "━", "┄"), ("ascii", "=", ".")])
def test_lost(draw: Draw, encoding: str, bar: str, lost_bar: str) -> None:
    """A task that never ran says so, and its bar does not look like work, nor does it hide the response."""
    drawn = draw(LOST, 120, encoding)
    ran, never_ran = line(drawn, "background_task charge"), line(drawn, "background_task update")
    assert bar in ran
    assert lost_bar not in ran[50:]
    assert lost_bar in never_ran[50:]
    assert bar not in never_ran
    assert never_ran.index("│" if encoding == "utf-8" else "|", 50) == (
        line(drawn, "response at the client").index("│" if encoding == "utf-8" else "|")
    )
    assert "never ran: skipped" in drawn
    assert ("✗" if encoding == "utf-8" else "x") + " 1 task never ran: update" in drawn


@pytest.mark.parametrize(
    ("width", "said"),
    [(80, ["logged:  A warning.", "logged:  Another.", "counted: lost is 2"]),
     (44, ["logged: A warning.", "logged: Another.", "counted: lost is 2"])],
)  # fmt: skip
def test_logged(draw: Draw, width: int, said: list[str]) -> None:
    """What was logged and counted is shown behind the verdict."""
    logged = Timeline(
        "A title", "A sentence.", spans(REQUEST), 150, logged=["A warning.", "Another."], counted=["lost is 2"]
    )
    assert [text.strip("│ ") for text in draw(logged, width).splitlines()][-5:-1] == ["", *said]
    assert "logged" not in draw(timeline(REQUEST), width)


def test_untold(draw: Draw) -> None:
    """Tasks that never ran, without a word from anybody, are said to be lost, and nothing else is said to be right."""
    for tasks, said in (
        (["charge"], ["✗ 1 task never ran: charge", "✗ nobody told: no span, no log line and no metric names it"]),
        (
            ["charge", "mail"],
            ["✗ 2 tasks never ran: charge, mail", "✗ nobody told: no span, no log line and no metric names them"],
        ),
    ):
        drawn = draw(Timeline("A title", "A sentence.", spans(REQUEST), 150, untold=tasks))
        assert [text.strip("│ ") for text in drawn.splitlines()][-3:-1] == said


def test_end_that_no_span_tells(draw: Draw) -> None:
    """Where the work behind the response has left no span, its time is there, and empty."""
    silent = Timeline("A title", "A sentence.", spans(REQUEST), 151_000_000, ended=601_000_000)
    request = line(draw(silent), "POST /checkout").rstrip()
    assert request.endswith("│")
    assert request.count("━") == 7  # a quarter of what the bar has room for


@pytest.mark.parametrize(
    ("drawn", "colour"),
    [
        (timeline(REQUEST, task("notify", 151, 700)), "green"),
        (timeline(REQUEST, task("notify", 151, 700, error="ValueError")), "green"),
        (LOST, "yellow"),
        (timeline(REQUEST, GET), "red"),
        (timeline(REQUEST, GET, task("notify", 100, 700, span_id=3, error="dropped")), "red"),
        (Timeline("A title", "A sentence.", spans(REQUEST), 150, untold=["notify"]), "red"),
    ],
    ids=["right", "failed", "lost", "wrong", "lost and wrong", "untold"],
)
def test_frame(drawn: Timeline, colour: str) -> None:
    """The frame is red where the spans mislead, yellow where they tell of lost work, and green where all work ran."""
    (panel,) = drawn.__rich_console__(Console(), Console().options)
    assert isinstance(panel, Panel)
    assert panel.border_style == colour


def test_ascii(draw: Draw) -> None:
    """Where the encoding has nothing to draw with, letters and dashes do."""
    drawn = draw(timeline(REQUEST, GET), encoding="ascii")
    assert drawn.isascii()
    assert "`-- GET" in drawn
    assert "|===" in line(drawn, "GET")
    assert "x GET ends 600 ms after its parent POST /checkout" in drawn
    assert "+ every span lies within its parent" in draw(timeline(REQUEST), encoding="ascii")
