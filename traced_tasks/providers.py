"""The providers of OpenTelemetry, and what is made once for each."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from opentelemetry import metrics, trace
from opentelemetry.environment_variables import OTEL_PYTHON_METER_PROVIDER, OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.metrics import MeterProvider
from opentelemetry.metrics import _internal as _metrics
from opentelemetry.trace import TracerProvider

Provider = TypeVar("Provider")
Made = TypeVar("Made")

# As long as no provider is set, the API's functions that return it look into the environment for one each time, at
# 0.6 us a call. They need to be asked only where the environment names one, or where the API keeps it elsewhere.
_ask_for_tracer = OTEL_PYTHON_TRACER_PROVIDER in os.environ or not hasattr(trace, "_TRACER_PROVIDER")
_ask_for_meter = OTEL_PYTHON_METER_PROVIDER in os.environ or not hasattr(_metrics, "_METER_PROVIDER")


def global_tracer_provider() -> TracerProvider | None:
    """Return the global tracer provider, if one has been set."""
    return trace.get_tracer_provider() if _ask_for_tracer else trace._TRACER_PROVIDER  # pyright: ignore[reportPrivateUsage]


def global_meter_provider() -> MeterProvider | None:
    """Return the global meter provider, if one has been set."""
    return metrics.get_meter_provider() if _ask_for_meter else _metrics._METER_PROVIDER  # pyright: ignore[reportPrivateUsage]


class PerProvider(Generic[Provider, Made]):
    """Make a thing on its first use with a provider, and forget it with the provider.

    By identity: a provider need not be hashable, and two that are equal may export to different places.
    """

    def __init__(self, make: Callable[[Provider], Made], find: Callable[[], Provider | None]) -> None:
        self._make = make
        self._find = find
        self._made: dict[int, tuple[weakref.ref[Provider], Made]] = {}
        self._lock = threading.RLock()

    def get(self, provider: Provider | None) -> Made | None:
        """Return the thing of a provider, or of the global one; `None` as long as there is none."""
        if provider is None:
            provider = self._find()
            if provider is None:
                return None
        made = self._made.get(id(provider))
        return self._add(provider) if made is None else made[1]

    def _add(self, provider: Provider) -> Made:
        key = id(provider)
        with self._lock:
            made = self._made.get(key)
            if made is None:
                made = weakref.ref(provider, lambda _: self._made.pop(key)), self._make(provider)
                self._made[key] = made
            return made[1]
