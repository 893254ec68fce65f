"""A timeline of spans for the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from traced_tasks.demo.spans import Span, Spans, ms, never_ran

_WRONG, _RIGHT, _MARK, _LOST, _QUIET = "bold red", "bold green", "yellow", "red", "bright_black"
_WORKER = "dark_orange"
_STYLES = {
    "server": "blue",
    "client": "cyan",
    "internal": "magenta",
    "consumer": "magenta",
    "producer": "magenta",
    "waiting": _QUIET,
}

# A cell is two halves wide. By which of them are filled: none, the right, the left, both.
_BAR, _CROSSED_BAR, _ASCII_BAR = " ╺╸━", "│┝┥┿", " ==="
# Nothing ran in the time of a task that was lost, or on the broker, and it does not look as if.
_IDLE_BAR, _CROSSED_IDLE_BAR, _ASCII_IDLE_BAR = " ┄┄┄", "││││", " ..."

_ANSWERED = "response at the client"
_GUIDES, _ASCII_GUIDES = ("├── ", "└── ", "│   "), ("+-- ", "`-- ", "|   ")

# In so few columns, a bar stands below the name of its span; in some more there is no column for the kind of a span.
_NARROW, _WIDE = 72, 100


@dataclass(frozen=True)
class _Axis:
    """The time of a chapter, laid out on a column of the terminal."""

    start: int
    end: int
    mark: int

    def column(self, time: int, columns: int) -> int:
        """Return how many of `columns` are before `time`."""
        return max(time - self.start, 0) * columns // max(self.end - self.start, 1)

    def ticks(self, width: int) -> Iterator[tuple[int, str]]:
        """Yield round times and the text for each, with room between them."""
        length = (self.end - self.start) / 1_000_000
        step = next(
            step
            for exponent in range(-3, 20)
            for step in (10**exponent, 2 * 10**exponent, 5 * 10**exponent)
            if step * width >= 6 * length
        )
        tick = 0.0
        while tick <= length:
            yield self.column(self.start + round(tick * 1_000_000), width), f"{tick:g}"
            tick += step


@dataclass(frozen=True)
class _Line:
    """One line of the column of bars: the mark of the response, and a span's bar if the line has one."""

    axis: _Axis
    span: Span | None = None
    style: str = ""

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(10, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        filled = self._filled(width)
        mark = min(self.axis.column(self.axis.mark, width), width - 1)
        bar, crossed_bar, ascii_bar = (
            (_IDLE_BAR, _CROSSED_IDLE_BAR, _ASCII_IDLE_BAR)
            if self.span and self.span.idle
            else (_BAR, _CROSSED_BAR, _ASCII_BAR)
        )
        line = Text(no_wrap=True)
        for cell in range(width):
            index = 2 * (2 * cell in filled) + (2 * cell + 1 in filled)
            if cell == mark:
                line.append("|" if options.ascii_only else crossed_bar[index], _MARK)
            else:
                line.append((ascii_bar if options.ascii_only else bar)[index], self.style)
        yield line

    def _filled(self, width: int) -> range:
        if self.span is None:
            return range(0)
        start = min(self.axis.column(self.span.start, 2 * width), 2 * width - 1)
        # The shortest span is still to be seen.
        return range(start, max(self.axis.column(self.span.end, 2 * width), start + 1))


@dataclass(frozen=True)
class _Ticks:
    """The head of the column of bars: its scale."""

    axis: _Axis

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(10, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unit = " ms"
        width = options.max_width
        line = ""
        for column, text in self.axis.ticks(width):
            if column + len(text) + len(unit) <= width:
                line = f"{line:<{column}}{text}"
        yield Text(f"{line}{unit}", _QUIET, no_wrap=True)


@dataclass(frozen=True)
class Verdict:
    """Lines with a mark before each, of whether it is right.

    Attributes:
        lines: Whether it is right, and the line.
    """

    lines: Sequence[tuple[bool, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wrong, right = ("x", "+") if options.ascii_only else ("✗", "✓")
        grid = Table.grid(padding=(0, 1, 0, 0))
        for is_right, text in self.lines:
            mark = Text(right, _RIGHT) if is_right else Text(wrong, _WRONG)
            grid.add_row(mark, Text(text, "green" if is_right else "red"))
        yield grid


@dataclass(frozen=True)
class _Row:
    """One line of the tree: a span, or something about it."""

    text: Text
    span: Span | None = None


class Timeline:
    """A tree of spans with their bars to scale, and beneath it what is wrong and what is right.

    Args:
        title: What was tried.
        text: A sentence about it.
        spans: The recorded spans, at least one.
        answered: When the response had reached the client, in nanoseconds since the epoch.
        ended: When the work behind the response had ended, if that is known and no span tells.
        logged: What was logged meanwhile.
        counted: What was counted meanwhile.
        untold: The tasks that never ran, and of which there is no span, log line or metric.
    """

    def __init__(
        self,
        title: str,
        text: str,
        spans: Spans,
        answered: int,
        *,
        ended: int = 0,
        logged: Sequence[str] = (),
        counted: Sequence[str] = (),
        untold: Sequence[str] = (),
    ) -> None:
        self.title = title
        self.text = text
        self.spans = spans
        self.logged = logged
        self.counted = counted
        self.untold = untold
        self.axis = _Axis(
            start=min(span.start for span in spans.all),
            end=max(answered, ended, *(span.end for span in spans.all)),
            mark=answered,
        )
        self.findings = spans.findings()
        self._wrong = {finding.span.id for finding in self.findings}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [*self._rows(_ASCII_GUIDES if options.ascii_only else _GUIDES)]
        narrow = options.max_width < _NARROW
        yield Panel(
            Group(
                Text(self.text),
                "",
                self._narrow(rows) if narrow else self._table(rows, options.max_width >= _WIDE),
                "",
                Verdict([*self._verdict()]),
                *self._also(narrow),
            ),
            title=Text(self.title, "bold"),
            title_align="left",
            border_style=self._border(),
            padding=(0, 1),
        )

    def _border(self) -> str:
        if self.findings or self.untold:
            return "red"
        return "yellow" if self.spans.lost() else "green"

    def _table(self, rows: Sequence[_Row], wide: bool) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style=_QUIET)
        # Widths to begin with, so that the bars of one chapter stand below those of another.
        table.add_column("span", no_wrap=True, min_width=31)
        if wide:
            table.add_column("kind", no_wrap=True, min_width=8)
        table.add_column("start", justify="right", no_wrap=True, min_width=6)
        table.add_column("duration", justify="right", no_wrap=True)
        table.add_column(_Ticks(self.axis), ratio=1)
        for row in rows:
            span = row.span
            kind = [span.kind if span else ""] if wide else []
            start, duration = (ms(span.start - self.axis.start), ms(span.end - span.start)) if span else ("", "")
            table.add_row(row.text, *kind, start, duration, _Line(self.axis, span, self._style(span)))
        answered = Text(ms(self.axis.mark - self.axis.start), _MARK)
        table.add_row(Text(_ANSWERED, _MARK), *([""] if wide else []), answered, "", _Line(self.axis))
        return table

    def _narrow(self, rows: Sequence[_Row]) -> Group:
        lines: list[RenderableType] = [_Ticks(self.axis)]
        for row in rows:
            if row.span is None:
                lines.append(row.text)
                continue
            lines.append(_ends(row.text, Text(ms(row.span.end - row.span.start))))
            lines.append(_Line(self.axis, row.span, self._style(row.span)))
        lines.append(_ends(Text(_ANSWERED, _MARK), Text(ms(self.axis.mark - self.axis.start), _MARK)))
        lines.append(_Line(self.axis))
        return Group(*lines)

    def _rows(self, guides: tuple[str, str, str]) -> Iterator[_Row]:
        trace = None
        for root in self.spans.roots():
            if root.id[0] != trace:
                trace = root.id[0]
                yield _Row(Text(f"trace {trace:032x}"[:14], _QUIET))
            yield from self._branch(root, guides, "", "")

    def _branch(self, span: Span, guides: tuple[str, str, str], first: str, rest: str) -> Iterator[_Row]:
        style = self._style(span)
        yield _Row(_label(first, span.name, style), span)
        if self.spans.arrived(span):
            yield _Row(_label(rest, "in the worker", style))
        if span.error:
            yield _Row(_label(rest, f"{'never ran' if span.lost else 'failed'}: {span.error}", _WRONG))
        for link in span.links:
            target = self.spans.get(link)
            yield _Row(_label(rest, f"linked to {target.name if target else 'another trace'}", _MARK))
        children = self.spans.children(span)
        for wait in filter(None, map(self.spans.wait, children)):
            yield _Row(_label(rest, wait.name, self._style(wait)), wait)
        between, last, through = guides
        for child in children:
            branch, below = (last, "    ") if child is children[-1] else (between, through)
            yield from self._branch(child, guides, rest + branch, rest + below)

    def _style(self, span: Span | None) -> str:
        if span is None:
            return ""
        if span.lost:
            return _LOST
        if span.error or span.id in self._wrong:
            return _WRONG
        return _WORKER if span.worker else _STYLES.get(span.kind, "")

    def _verdict(self) -> Iterator[tuple[bool, str]]:
        for finding in self.findings:
            yield False, f"{finding.span.name} {finding.text}"
        for text in self.spans.troubles():
            yield False, text
        if self.untold:
            yield False, never_ran(self.untold)
            them = "it" if len(self.untold) == 1 else "them"
            yield False, f"nobody told: no span, no log line and no metric names {them}"
        elif not self.findings:
            for text in self.spans.explained():
                yield True, text

    def _also(self, narrow: bool) -> Iterator[RenderableType]:
        said = [("logged:", text) for text in self.logged] + [("counted:", text) for text in self.counted]
        if not said:
            return
        yield ""
        grid = Table.grid(padding=(0, 1, 0, 0))
        for label, text in said:
            if narrow:
                grid.add_row(Text(f"{label} {text}", _QUIET))
            else:
                grid.add_row(Text(label, _QUIET), Text(text, _QUIET))
        yield grid


def _label(guide: str, text: str, style: str) -> Text:
    return Text.assemble((guide, _QUIET), (text, style), no_wrap=True, overflow="ellipsis")


def _ends(left: Text, right: Text) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(ratio=1, no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_row(left, right)
    return grid
