"""What the page is told, as JSON, in parts that do not hold up the event loop."""

import json
import math
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from time import perf_counter, time
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.trace import Span

from traced_tasks._metrics import everyone
from traced_tasks.live._recorder import NAME, Card, Ended, Recorder, copied, cut
from traced_tasks.unfinished import found_tasks

_PART = 100_000  # characters
_OVERLAP = 0.2  # s, for what another thread notes in the meantime
_WAITING = 20  # tasks of a card that are told one by one
_LOOK = 20  # times what a look at the waiting tasks takes passes before the next

Waiting = dict[str, Any]


class Answers:
    """Answers the page.

    Args:
        recorder: What has recorded the spans.
        trace_url: Where a trace is to be found, with `{trace_id}` in it.
    """

    def __init__(self, recorder: Recorder, trace_url: str | None) -> None:
        self._recorder, self._trace_url = recorder, trace_url
        self._waiting: list[Waiting] = []
        self._waits: Counter[int] = Counter()  # tasks by the number of their card
        self._looked_at = self._look_took = -math.inf

    def answer(self, known: str) -> str:
        """Return what is new.

        Args:
            known: What the page knows: of each process that has answered, `process:until`, as they were in the answer,
                and `:more` if it was cut short; separated by commas.
        """
        until = perf_counter()
        waiting = self._look()
        process = f"{os.getpid()}-{self._recorder.since:.6f}"
        after, before = _known(known, process)
        all_cards = self._recorder.cards()
        texts: list[str] = []
        size = last = 0
        more: int | None = None
        for card in all_cards:
            if card.changed < after or card.number >= before:
                continue
            if size > _PART:
                more = last
                break
            texts.append(json.dumps(_of(card)))
            size, last = size + len(texts[-1]), card.number
        told: dict[str, Any] = {
            "process": process,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": self._recorder.since * 1000,
            "now": time() * 1000,
            "until": until,
            "more": more,
            "totals": self._recorder.totals,
            "waiting": waiting,
            "waits": self._waits if waiting else {},
            "kept": [card.number for card in all_cards],
            "trace_url": self._trace_url,
        }
        return f'{json.dumps(told)[:-1]}, "cards": [{", ".join(texts)}]}}'

    def _look(self) -> list[Waiting]:
        """Return the tasks that wait. It looks at all objects of the process, and so not at each request."""
        if not any(function.waiting for function in tuple(everyone)):
            return []
        started_at = perf_counter()
        if started_at - self._looked_at < _LOOK * self._look_took:
            return self._waiting
        self._waits.clear()
        self._waiting = list(self._find())
        self._looked_at = perf_counter()
        self._look_took = self._looked_at - started_at
        return self._waiting

    def _find(self) -> Iterator[Waiting]:
        for task, state, seconds in found_tasks():
            context = trace.get_current_span(task.context).get_span_context()
            card = self._recorder.of(context.span_id, context.trace_id) if state == "waiting" else None
            if card is not None:
                self._waits[card.number] += 1
                if self._waits[card.number] <= _WAITING:
                    name = cut(task.tracing.span_name or task.instruments.span_name, NAME)
                    yield {"card": card.number, "name": name, "since": (time() - seconds) * 1000}


def _known(known: str, process: str) -> tuple[float, float]:
    """Return what is known of this process: until when, and, if the answer was cut short, down to which card."""
    for each in known.split(","):
        of, _, rest = each.partition(":")
        until, _, more = rest.partition(":")
        with suppress(ValueError):
            if of == process:
                return float(until) - _OVERLAP, float(more or "inf")
    return -math.inf, math.inf


def _of(card: Card) -> dict[str, Any]:
    root = card.root
    return {
        "number": card.number,
        "trace": f"{card.trace_id:032x}",
        "root": None if root is None else _shown(root),
        "spans": [_shown(span) for span in tuple(card.spans.values())],
        "is_exact": card.is_exact,
        "sent_at": None if card.sent_at is None else card.sent_at / 1e6,
        "cut": card.cut,
    }


def _shown(span: Span | Ended) -> dict[str, Any]:
    ended = span if isinstance(span, Ended) else copied(span)
    attributes = {
        key: str.__str__(value) if isinstance(value, str) else str(value) for key, value in ended.attributes.items()
    }
    if ended.kind == "span":
        # Of an address the host alone, for the rest of it may be a secret.
        address = attributes.pop("http.url", None) or attributes.pop("url.full", None)
        with suppress(ValueError):
            if address and (host := urlsplit(address).hostname):
                attributes.setdefault("server.address", host)
        if "http.target" in attributes:
            attributes["http.target"] = attributes["http.target"].partition("?")[0]
    waited = ended.attributes.get("background_task.queue.duration")
    return {
        "id": f"{ended.span_id:016x}",
        "parent": None if ended.parent_id is None else f"{ended.parent_id:016x}",
        "trace": f"{ended.trace_id:032x}",
        "name": ended.name,
        "kind": ended.kind,
        "start": ended.start / 1e6,
        "end": None if ended.end is None else ended.end / 1e6,
        "waited": waited * 1000 if isinstance(waited, float) and math.isfinite(waited) else 0,
        "outcome": ended.outcome,
        "failed": ended.failed,
        "description": ended.description,
        "attributes": attributes,
    }
