"""A timeline of spans for the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from traced_tasks.demo.spans import Span, Spans, ms

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


class Timeline:
    """A tree of spans with their bars to scale, and beneath it what is wrong and what is right.

    Args:
        title: What was tried.
        text: A sentence about it.
        spans: The recorded spans, at least one.
        answered: When the response had reached the client, in nanoseconds since the epoch.
        logged: What was logged meanwhile.
    """

    def __init__(self, title: str, text: str, spans: Spans, answered: int, logged: Sequence[str] = ()) -> None:
        self.title = title
        self.text = text
        self.spans = spans
        self.logged = logged
        self.axis = _Axis(
            start=min(span.start for span in spans.all),
            end=max(answered, *(span.end for span in spans.all)),
            mark=answered,
        )
        self.findings = spans.findings()
        self._wrong = {finding.span.id for finding in self.findings}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Panel(
            Group(
                Text(self.text),
                "",
                self._table(),
                "",
                self._verdict(options.ascii_only),
                *self._log(),
            ),
            title=Text(self.title, "bold"),
            title_align="left",
            border_style=self._border(),
            padding=(0, 1),
        )

    def _border(self) -> str:
        if self.findings:
            return "red"
        return "yellow" if any(span.lost for span in self.spans.all) else "green"

    def _table(self) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style=_QUIET)
        # Widths to begin with, so that the bars of one chapter stand below those of another.
        table.add_column("span", no_wrap=True, min_width=26)
        table.add_column("kind", no_wrap=True, min_width=8)
        table.add_column("start", justify="right", no_wrap=True, min_width=6)
        table.add_column("duration", justify="right", no_wrap=True)
        table.add_column(_Ticks(self.axis), ratio=1)

        names: list[RenderableType] = []
        lines: list[Span | None] = []
        trace = None
        for root in self.spans.roots():
            if root.id[0] != trace:
                trace = root.id[0]
                names.append(Text(f"trace {trace:032x}"[:14], _QUIET))
                lines.append(None)
            tree = Tree(self._label(root, lines), guide_style=_QUIET)
            self._grow(tree, root, lines)
            names.append(tree)
        table.add_row(
            Group(*names),
            Text("\n".join(span.kind if span else "" for span in lines)),
            Text("\n".join(ms(span.start - self.axis.start) if span else "" for span in lines)),
            Text("\n".join(ms(span.end - span.start) if span else "" for span in lines)),
            Group(*(_Line(self.axis, span, self._style(span)) for span in lines)),
        )
        table.add_row(
            Text("response at the client", _MARK),
            "",
            Text(ms(self.axis.mark - self.axis.start), _MARK),
            "",
            _Line(self.axis),
        )
        return table

    def _grow(self, tree: Tree, parent: Span, lines: list[Span | None]) -> None:
        for span in self.spans.children(parent):
            self._grow(tree.add(self._label(span, lines)), span, lines)

    def _label(self, span: Span, lines: list[Span | None]) -> Text:
        label = Text(span.name, self._style(span), no_wrap=True, overflow="ellipsis")
        lines.append(span)
        if self.spans.arrived(span):
            label.append("\nin the worker", self._style(span))
            lines.append(None)
        if span.error:
            label.append(f"\n{'never ran' if span.lost else 'failed'}: {span.error}", _WRONG)
            lines.append(None)
        for link in span.links:
            target = self.spans.get(link)
            label.append(f"\nlinked to {target.name if target else 'another trace'}", _MARK)
            lines.append(None)
        for wait in filter(None, map(self.spans.wait, self.spans.children(span))):
            label.append(f"\n{wait.name}", self._style(wait))
            lines.append(wait)
        return label

    def _style(self, span: Span | None) -> str:
        if span is None:
            return ""
        if span.lost:
            return _LOST
        if span.error or span.id in self._wrong:
            return _WRONG
        return _WORKER if span.worker else _STYLES.get(span.kind, "")

    def _verdict(self, ascii_only: bool) -> Table:
        verdict = Table.grid(padding=(0, 1, 0, 0))
        for text in [f"{finding.span.name} {finding.text}" for finding in self.findings] + self.spans.troubles():
            verdict.add_row(Text("x" if ascii_only else "✗", _WRONG), Text(text, "red"))
        if not self.findings:
            for text in self.spans.explained():
                verdict.add_row(Text("+" if ascii_only else "✓", _RIGHT), Text(text, "green"))
        return verdict

    def _log(self) -> Iterator[RenderableType]:
        if self.logged:
            yield ""
            log = Table.grid(padding=(0, 1, 0, 0))
            for line in self.logged:
                log.add_row(Text("logged:", _QUIET), Text(line, _QUIET))
            yield log
