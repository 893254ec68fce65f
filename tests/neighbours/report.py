"""What a program of `apps` tells the tests."""

from typing import Any

from pydantic import BaseModel


class Span(BaseModel):
    """A span that ended."""

    scope: str
    name: str
    kind: str = ""
    trace: str
    id: str
    parent: str | None
    error: str | None = None


class Added(BaseModel):
    """Where a task was added to the queue."""

    path: str
    task: str
    span: str
    trace: str


class Seen(BaseModel):
    """What a task saw when it ran."""

    path: str
    task: str
    span: str
    trace: str
    baggage: dict[str, Any]
    customer: str
    variables: list[str]
    watched: dict[str, Any]


class Report(BaseModel):
    """What happened in a program."""

    answers: dict[str, int]
    added: list[Added]
    seen: list[Seen]
    spans: list[Span]
    logged: list[str]
    neighbour: dict[str, Any]

    def adopted(self) -> list[str]:
        """The paths whose handler asked for a traced queue."""
        return [path for path in self.answers if path.startswith("/traced")]

    def of(self, path: str) -> list[Span]:
        """The spans in the trace of a request, in the order of their end."""
        (trace,) = {added.trace for added in self.added if added.path == path}
        return [span for span in self.spans if span.trace == trace]

    def tasks(self) -> list[Span]:
        """The spans that traced_tasks made."""
        return [span for span in self.spans if span.scope == "traced_tasks"]
