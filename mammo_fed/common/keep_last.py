"""The last value that was made, kept for whoever asks for the same again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["KeepLast"]

Value = TypeVar("Value")


class KeepLast(Generic[Value]):
    """Keeps one value with its key: memory stays bounded whatever keys are asked for.

    A copy, or the object in another process, starts empty: what can be made again is not carried along. Threads that ask at
    once may each make the value; each gets the right one.

    >>> kept = KeepLast[str]()
    >>> kept.get("a", lambda: "made"), kept.get("a", lambda: "made again"), kept.get("b", lambda: "other")
    ('made', 'made', 'other')
    """

    def __init__(self) -> None:
        self._last: tuple[Hashable, Value] | None = None

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept for `key`, else what `make` makes; what was kept for another key is dropped first."""
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        self._last = last = None
        value = make()
        self._last = (key, value)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())
