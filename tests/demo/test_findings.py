"""What the story finds wrong with spans, and what not."""

from opentelemetry.sdk.trace import ReadableSpan

from tests.demo.made import REQUEST, TASK, context, handed_over, made, spans, task


def wrong(*recorded: ReadableSpan) -> list[str]:
    return [f"{finding.span.name} {finding.text}" for finding in spans(*recorded).findings()]


def test_outlives_parent() -> None:
    """A span that runs on after its parent has ended is found, with the time by which."""
    assert wrong(REQUEST, made("GET", 100, 762, context=context(2), parent=context(1))) == [
        "GET ends 612 ms after its parent POST /checkout"
    ]


def test_starts_after_parent() -> None:
    """A span that starts after its parent has ended is found, as work that nothing names."""
    assert wrong(REQUEST, made("GET", 151.5, 700, context=context(2), parent=context(1))) == [
        "GET starts 1.5 ms after its parent POST /checkout has ended, and nothing says that it is background work",
        "GET ends 550 ms after its parent POST /checkout",
    ]


def test_background_task() -> None:
    """A background task may outlive its parent, and what it calls is measured against the task."""
    recorded = (
        REQUEST,
        task("notify", 151, 700),
        made("GET", 152, 699, context=context(3), parent=context(2)),
    )
    assert wrong(*recorded) == []
    assert spans(*recorded).explained() == [
        "background_task notify ends 550 ms after its parent POST /checkout, and says that it is background work"
    ]


def test_outlives_background_task() -> None:
    """A background task excuses itself, and nothing that is left behind when it ends."""
    assert wrong(
        REQUEST,
        task("notify", 151, 700),
        made("GET", 152, 720, context=context(3), parent=context(2)),
    ) == ["GET ends 20 ms after its parent background_task notify"]


def test_quick_background_task() -> None:
    """A background task that outlives nothing needs no words of its own."""
    quick = task("notify", 100, 120)
    assert wrong(REQUEST, quick) == []
    assert spans(REQUEST, quick).explained() == ["every span lies within its parent"]


def test_linked() -> None:
    """A background task in a trace of its own is explained by its link."""
    linked = made(
        "background_task notify", 151, 700, context=context(2, trace=2), scope=TASK, links=[context(1), context(9)]
    )
    assert wrong(REQUEST, linked) == []
    assert spans(REQUEST, linked).explained() == [
        "background_task notify is the root of a trace of its own, linked to POST /checkout"
    ]


def test_lost() -> None:
    """Tasks that never ran are in the right place, stand where they would have run, and are counted by name."""
    failed = task("charge", 160, 200, span_id=3, error="shop.PaymentError")
    recorded = spans(
        REQUEST,
        task("update", 100, 201, span_id=4, error="skipped"),
        task("write", 100, 202, span_id=5, error="dropped"),
        task("mail", 151, 159),
        failed,
    )
    assert recorded.findings() == []
    assert [span.task for span in recorded.all[1:]] == ["mail", "charge", "update", "write"]
    assert recorded.troubles() == ["charge failed: PaymentError", "2 tasks never ran: update, write"]
    assert recorded.explained() == []
    assert spans(task("update", 100, 201, error="skipped")).troubles() == ["1 task never ran: update"]


def test_failed() -> None:
    """Where a task failed and none was lost, that is said; an error's name alone is no loss, nor a request's error."""
    recorded = spans(
        made("POST /checkout", 0, 150, context=context(1), error="skipped"),
        task("mail", 151, 159),
        task("charge", 160, 200, span_id=3, error="shop.skipped"),
    )
    assert recorded.troubles() == ["charge failed: skipped"]
    assert recorded.explained() == ["all 2 tasks ran: mail, charge"]


def test_worker() -> None:
    """Of a task that ran in a worker the time on the broker is told, which is none if the worker was quicker."""
    for start, waited in (164, "4.0 ms"), (155, "0.0 ms"):
        recorded = REQUEST, *handed_over(160, start)
        assert wrong(*recorded) == []
        assert spans(*recorded).explained() == [
            "send notify ends 10 ms after its parent POST /checkout, and says that it is background work",
            f"background_task notify ran in the worker, after {waited} on the broker",
        ]


def test_same_moment() -> None:
    """Spans that start and end in the same moment as their parent, or take no time at all, are in order."""
    assert wrong(
        made("parent", 5, 5, context=context(1)),
        made("child", 5, 5, context=context(2), parent=context(1)),
    ) == []  # fmt: skip


def test_clock_set_back() -> None:
    """A span that ends before it starts, or starts before its parent, is found."""
    assert wrong(REQUEST, made("GET", 100, 90, context=context(2), parent=context(1))) == [
        "GET ends 10 ms before it starts"
    ]
    assert wrong(
        made("parent", 5, 9, context=context(1)), made("child", 2, 6, context=context(2), parent=context(1))
    ) == ["child starts 3.0 ms before its parent parent"]


def test_missing_parent() -> None:
    """A span whose parent was not recorded is found, unless that is in another process."""
    assert wrong(made("GET", 0, 1, context=context(2), parent=context(1))) == ["GET has a parent that was not recorded"]
    assert wrong(made("GET", 0, 1, context=context(2), parent=context(1, remote=True))) == []


def test_several_roots() -> None:
    """Spans without a parent are judged alone, and the earliest comes first, in whatever order they were recorded."""
    late, early = made("late", 500, 900, context=context(1)), made("early", 0, 10, context=context(2))
    assert wrong(late, early) == []
    assert [root.name for root in spans(late, early).roots()] == ["early", "late"]
