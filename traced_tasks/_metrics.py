"""The instruments that measure tasks, by function."""

import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, NoOpMeterProvider, Observation

from traced_tasks._names import with_module
from traced_tasks._providers import SCHEMA_URL, PerProvider, at_fork, making
from traced_tasks._version import __version__

# 1 ms to 10 min: OpenTelemetry's advice for HTTP durations ends where many background tasks begin.
_BOUNDARIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_REMEMBERED = 1024  # functions without a task, of each provider: those that had one last


class FunctionInstruments:
    """The names of a function, and the instruments as its tasks use them."""

    def __init__(self, instruments: "Instruments", name: str, function: str) -> None:
        self.name = name  # the `code.function.name`
        self.function = function
        self.span_name = f"background_task {function}"
        self.attributes = {"code.function.name": name}
        self.measured = instruments.measured
        self._instruments = instruments
        # To put and to pop is atomic, so the tasks of several threads and event loops need no lock to be counted.
        self.waiting: dict[object, int] = {}
        """A ticket for each task that waits, with its `id`. Who pops it starts the task, or finds it lost, alone."""
        self.running: list[None] = []
        everyone.add(self)

    def start(self, queue_duration: float | None) -> None:
        """Count a task as running, and record how long it waited, in seconds, if that is known."""
        self.running.append(None)
        if queue_duration is not None:
            self._instruments.queue_duration.record(queue_duration, self.attributes)

    def end(self, duration: float, error: str | None) -> None:
        """Count a task as running no more, and record how long it ran, in seconds, and its `error.type`."""
        if self.running:  # not in a process that was forked off meanwhile
            self.running.pop()
        attributes = self.attributes if error is None else {**self.attributes, "error.type": error}
        self._instruments.duration.record(duration, attributes)

    def lose(self, error: str) -> None:
        """Count a task as lost."""
        self._instruments.lost.add(1, {**self.attributes, "error.type": error})

    def __deepcopy__(self, memo: Any) -> "FunctionInstruments":
        return self  # a copy of a task is one of the same function


class Instruments:
    """The five instruments of one meter provider."""

    def __init__(self, provider: MeterProvider) -> None:
        self.measured = type(provider) is not NoOpMeterProvider
        self._functions: weakref.WeakValueDictionary[str, FunctionInstruments] = weakref.WeakValueDictionary()
        self.of: Callable[[str | None, str], FunctionInstruments] = lru_cache(_REMEMBERED)(self._of)
        """Return what measures the tasks of a function, by its module and its qualified name."""
        meter = provider.get_meter("traced_tasks", __version__, SCHEMA_URL)
        histogram = partial(meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_BOUNDARIES)
        self.duration = histogram("background_task.duration", description="How long background tasks ran.")
        waited = "How long background tasks waited, from add_task to their start."
        self.queue_duration = histogram("background_task.queue.duration", description=waited)
        self.lost = meter.create_counter("background_task.lost", "{task}", "How many background tasks never ran.")
        gauge = partial(meter.create_observable_up_down_counter, unit="{task}")
        active, waiting = partial(self._observe, "running"), partial(self._observe, "waiting")
        gauge("background_task.active", [active], description="How many background tasks are running.")
        gauge("background_task.waiting", [waiting], description="How many background tasks wait to start.")

    def _of(self, module: str | None, qualname: str) -> FunctionInstruments:
        qualname = qualname.replace("__taskiq_original", "")  # which Taskiq appends, once for each broker
        name = with_module(module, qualname)
        with making:
            function = self._functions.get(name)  # it is there, if it is forgotten and still has tasks
            if function is None:
                function = FunctionInstruments(self, name, qualname.rpartition("<locals>.")[2])
                self._functions[name] = function
            return function

    def _observe(self, tasks: str, options: CallbackOptions) -> Iterator[Observation]:  # noqa: ARG002
        for function in list(self._functions.values()):
            yield Observation(len(getattr(function, tasks)), function.attributes)


def _forked() -> None:
    # What waits or runs in the process that this one was forked from is neither run nor lost here.
    for function in everyone:
        function.waiting.clear()
        function.running.clear()


everyone = weakref.WeakSet[FunctionInstruments]()
at_fork(after_in_child=_forked)

instruments_of = PerProvider(Instruments).get
unmeasured = Instruments(NoOpMeterProvider())  # as long as no provider is set
