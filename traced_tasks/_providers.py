"""What is made once for each provider of OpenTelemetry, and in each process."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Provider = TypeVar("Provider")
Made = TypeVar("Made")

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"  # of the semantic conventions in use

at_fork: Any = getattr(os, "register_at_fork", dict)  # where there is no fork, there is nothing to do

making = threading.RLock()  # held during a fork as well, for the new process has no thread that could release it
at_fork(before=making.acquire, after_in_parent=making.release, after_in_child=making.release)


class PerProvider(Generic[Provider, Made]):
    """Make a thing on its first use with a provider, which need not be hashable, and forget it with the provider."""

    def __init__(self, make: Callable[[Provider], Made]) -> None:
        self._make = make
        self._made: dict[int, tuple[weakref.ref[Provider], Made]] = {}

    def get(self, provider: Provider) -> Made:
        """Return the thing of a provider."""
        made = self._made.get(id(provider))
        return self._add(provider) if made is None else made[1]

    def _add(self, provider: Provider) -> Made:
        key = id(provider)
        with making:
            if key not in self._made:
                self._made[key] = weakref.ref(provider, lambda _: self._made.pop(key)), self._make(provider)
            return self._made[key][1]
