"""The providers of OpenTelemetry, and what is made once for each."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from opentelemetry import metrics, trace
from opentelemetry.environment_variables import OTEL_PYTHON_METER_PROVIDER, OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.metrics import MeterProvider, _internal
from opentelemetry.trace import TracerProvider

# As long as no provider is set, the functions of the API that return it look into the environment for one each time, at
# 0.6 us a call. So they are called only where the environment names one, or there is one.
_tracer_provider_named = OTEL_PYTHON_TRACER_PROVIDER in os.environ
_meter_provider_named = OTEL_PYTHON_METER_PROVIDER in os.environ


def global_tracer_provider() -> TracerProvider | None:
    """Return the global tracer provider, if one has been set."""
    if getattr(trace, "_TRACER_PROVIDER", trace) is None and not _tracer_provider_named:
        return None
    return trace.get_tracer_provider()


def global_meter_provider() -> MeterProvider | None:
    """Return the global meter provider, if one has been set."""
    if getattr(_internal, "_METER_PROVIDER", trace) is None and not _meter_provider_named:
        return None
    return metrics.get_meter_provider()


Provider = TypeVar("Provider")
Made = TypeVar("Made")


class PerProvider(Generic[Provider, Made]):
    """Make a thing on its first use with a provider, and forget it with the provider.

    By identity: a provider need not be hashable, and two that are equal may export to different places.
    """

    def __init__(self, make: Callable[[Provider], Made]) -> None:
        self._make = make
        self._made: dict[int, tuple[weakref.ref[Provider], Made]] = {}
        self._lock = threading.RLock()

    def __call__(self, provider: Provider) -> Made:
        key = id(provider)
        made = self._made.get(key)
        if made is None:
            with self._lock:
                made = self._made.get(key)
                if made is None:
                    made = weakref.ref(provider, lambda _: self._made.pop(key)), self._make(provider)
                    self._made[key] = made
        return made[1]
