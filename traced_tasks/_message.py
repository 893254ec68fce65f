"""What travels with a message to a worker: the headers of the propagators, and one of ours."""

import json
from collections.abc import Mapping
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context

from traced_tasks._options import TaskOptions

_HEADER = "traced_tasks"
_UNSAID: dict[str, Any] = {"propagation_style": "", "span_name": None, "attributes": {}, "record_exception": True}
_encode = json.JSONEncoder(default=str).encode


def write(tracing: TaskOptions, queued_at: float) -> dict[str, str]:
    """Return the headers for a task with these options, sent from within the current context."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    ours = {name: value for name, unsaid in _UNSAID.items() if (value := getattr(tracing, name)) != unsaid}
    headers[_HEADER] = _encode({**ours, "queued_at": queued_at})
    return headers


def read(headers: Mapping[str, Any], tracing: TaskOptions) -> tuple[Context, float | None, TaskOptions]:
    """Return the context of a message, the time of `add_task`, if it says so, and its options with the worker's."""
    # Into an empty one: a worker within the application's process has the request's around it.
    context = propagate.extract(headers, Context())
    try:
        ours: Any = json.loads(headers[_HEADER])
        queued_at = float(ours["queued_at"])
        changes: Any = {name: ours[name] for name in _UNSAID if name in ours}  # others may come from a later version
        if not tracing.record_exception:
            changes["record_exception"] = False
        return context, queued_at, tracing.merge(changes)
    except Exception:
        is_traced = trace.get_current_span(context).get_span_context().is_valid
        return context, None, tracing.merge({"propagation_style": "link" if is_traced else "none"})
