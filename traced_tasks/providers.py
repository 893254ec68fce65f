"""What is made once for each provider of OpenTelemetry."""

import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

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
