"""The instruments that measure tasks."""

import weakref
from collections.abc import Iterator

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from traced_tasks.finalizers import after_fork
from traced_tasks.providers import PerProvider, global_meter_provider
from traced_tasks.version import __version__

# 1 ms to 10 min: OpenTelemetry's advice for HTTP durations ends where many background tasks begin.
_BOUNDARIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Instruments:
    """The four instruments of one meter provider."""

    def __init__(self, provider: MeterProvider) -> None:
        self._functions: dict[str, FunctionInstruments] = {}
        _everyone.add(self)
        meter = provider.get_meter("traced_tasks", __version__)
        self.duration = meter.create_histogram(
            "background_task.duration",
            unit="s",
            description="How long background tasks ran.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self.queue_duration = meter.create_histogram(
            "background_task.queue.duration",
            unit="s",
            description="How long background tasks waited, from add_task to their start.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._lost = meter.create_counter(
            "background_task.lost",
            unit="{task}",
            description="How many background tasks never ran.",
        )
        meter.create_observable_up_down_counter(
            "background_task.active",
            callbacks=[self._observe_active],
            unit="{task}",
            description="How many background tasks are running.",
        )

    def of(self, function_name: str) -> "FunctionInstruments":
        """Return what measures the tasks of a function."""
        function = self._functions.get(function_name)
        if function is None:
            function = self._functions.setdefault(function_name, FunctionInstruments(self, function_name))
        return function

    def lose(self, function_name: str, error: str) -> None:
        """Count a task as lost."""
        self._lost.add(1, {"code.function.name": function_name, "error.type": error})

    def forget_active(self) -> None:
        """Take no task for running."""
        self._functions.clear()

    def _observe_active(self, options: CallbackOptions) -> Iterator[Observation]:  # noqa: ARG002
        for function in list(self._functions.values()):
            yield Observation(len(function.running), function.attributes)


class FunctionInstruments:
    """The instruments, as the tasks of one function use them."""

    def __init__(self, instruments: Instruments, function_name: str) -> None:
        self._record_duration = instruments.duration.record
        self._record_queue_duration = instruments.queue_duration.record
        self.attributes = {"code.function.name": function_name}
        # One entry for each running task. To append and to pop is atomic, so that tasks of several threads and event
        # loops are counted right without a lock.
        self.running: list[None] = []

    def start(self, queue_duration: float) -> None:
        """Count a task as running, and record how long it waited, in seconds."""
        self.running.append(None)
        self._record_queue_duration(queue_duration, self.attributes)

    def end(self, duration: float, error: str | None) -> None:
        """Count a task as running no more, and record how long it ran, in seconds, and its `error.type`."""
        self.running.pop()
        attributes = self.attributes if error is None else {**self.attributes, "error.type": error}
        self._record_duration(duration, attributes)


_everyone = weakref.WeakSet[Instruments]()
instruments_of = PerProvider(Instruments, global_meter_provider).get


def _forked() -> None:
    # What runs here runs in the process that this one was forked from.
    for each in _everyone:
        each.forget_active()


after_fork(_forked)
