"""Whether every span belongs to its own request."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load.client import ROUTES


class Span(NamedTuple):
    """A span as the application wrote it down: what the SDK says of it, and what its own code told on it."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    links: list[list[int]]
    request: int | None
    task: int | None
    baggage: list[str] | None


class Spans:
    """The file that the application writes, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def new(self) -> list[Span]:
        """Return the spans that were written since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._position)
            spans = [Span(*json.loads(line)) for line in file]
            self._position = file.tell()
        return spans


def violations(spans: Sequence[Span], requests: range, tasks: int) -> Counter[str]:
    """Count what is wrong with the spans of requests, by what is wrong.

    Args:
        spans: Theirs, and no others.
        requests: Their numbers, by which the client chose the trace and the baggage of each.
        tasks: How many tasks each of them added.
    """
    wrong: Counter[str] = Counter()
    found: dict[tuple[str, int | None, int | None], list[Span]] = defaultdict(list)
    for span in spans:
        kind = "request" if span.name.startswith("POST /") else span.name.partition(" ")[0]
        found[kind, span.request, span.task].append(span)

    def take(kind: str, request: int, task: int | None) -> Span | None:
        those = found.pop((kind, request, task), [])
        wrong[f"{kind} lost"] += not those
        wrong[f"{kind} doubled"] += len(those) > 1
        return those[0] if those else None

    roots: set[int] = set()
    span_ids: set[int] = set()
    for number in requests:
        request = take("request", number, None)
        runs = [(take("background_task", number, task), take("work", number, task)) for task in range(tasks)]
        if request is None:
            continue
        wrong["request in another trace"] += (request.trace_id, request.parent_id) != (number + 1, number + 1)
        origin = [request.trace_id, request.span_id]
        for run, work in runs:
            if run is None or work is None:
                continue
            if ROUTES[number % len(ROUTES)].startswith("/child"):
                wrong["task below another span"] += [run.trace_id, run.parent_id] != origin
                wrong["child with a link"] += run.links != []
            else:
                wrong["task linked to another span"] += run.links != [origin]
                wrong["task in another trace"] += run.parent_id is not None or run.trace_id in {*roots, number + 1}
                roots.add(run.trace_id)
            wrong["work below another span"] += (work.trace_id, work.parent_id) != (run.trace_id, run.span_id)
        for each in (request, *(span for pair in runs for span in pair)):
            if each is None:
                continue
            wrong["baggage of another request"] += each.baggage != [str(number)] * 2
            wrong["one span id twice"] += each.span_id in span_ids
            span_ids.add(each.span_id)
    wrong["span of nothing"] += sum(map(len, found.values()))
    return +wrong


def violations_of_many(spans: Sequence[Span], tasks: int) -> Counter[str]:
    """Count what is wrong with the spans of one request that added many tasks.

    Args:
        spans: Its own, and no others.
        tasks: How many tasks it added.
    """
    wrong: Counter[str] = Counter()
    requests = [span for span in spans if span.name.startswith("POST /")]
    runs = [span for span in spans if not span.name.startswith("POST /")]
    wrong["request lost or doubled"] += len(requests) != 1
    wrong["tasks lost or doubled"] += abs(len(runs) - tasks)
    wrong["one span id twice"] += len(runs) - len({span.span_id for span in runs})
    origin = requests and (requests[0].trace_id, requests[0].span_id)
    wrong["task below another span"] += sum((span.trace_id, span.parent_id) != origin for span in runs)
    return +wrong
