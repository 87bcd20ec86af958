"""One kind of thing that a setting can name: ours, those registered in this process, those of installed distributions.

An entry point is code of another distribution. It is listed by its metadata alone, and imported only when its name is asked
for: never at start, and never because it is installed. Names of ours cannot be taken over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Generic, TypeVar

from mammo_fed.errors import InvalidSetting

__all__ = ["NAME", "Extensions", "Origin"]

T = TypeVar("T")

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an extension comes from.

    Attributes:
      distribution: name of the installed distribution, or "this process" where it was registered by a call.
      version: of the distribution, or "".
    """

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


class Extensions(Generic[T]):
    """Extensions of one kind.

    Args:
      group: of entry points, such as "mammo_fed.strategies".
      setting: that names one, for messages.
      built_in: names of ours, which nobody can take over.

    >>> shapes = Extensions[str](group="mammo_fed.shapes", setting="shape", built_in=("disc",))
    >>> shapes.register("square", "a square")
    >>> shapes.names(), shapes.load("square"), str(shapes.origin("square"))
    (('disc', 'square'), 'a square', 'this process')
    """

    def __init__(self, *, group: str, setting: str, built_in: Sequence[str]) -> None:
        self.group, self.setting, self.built_in = group, setting, tuple(built_in)
        self._registered: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Make `value` known in this process, for a script or a notebook; other processes need an entry point.

        Raises:
          InvalidSetting: If the name is ours, or not 1 to 64 letters, digits, dots, dashes and underscores.
        """
        self._check_name(name)
        self._registered[name] = value

    def unregister(self, name: str) -> None:
        """Forget what `register` made known."""
        self._registered.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """All names that a setting may give, ours first; nothing is imported for it."""
        return (*self.built_in, *sorted({*self._registered, *(point.name for point in self._points())} - set(self.built_in)))

    def extends(self, name: str) -> bool:
        """Whether `name` is there and not one of ours."""
        return name not in self.built_in and name in self.names()

    def check(self, name: str, *, beside: Sequence[str] = ()) -> None:
        """Raise InvalidSetting, with the known names, unless `name` is one of them; its setting takes `beside` as well."""
        if name not in self.built_in and name not in self.names():
            known = ", ".join((*beside, *self.names()))
            raise InvalidSetting(
                f"{self.setting}={name!r} must be one of {known}; check {self.setting}, or install a distribution with an "
                f"entry point {name!r} in the group {self.group}"
            )

    def load(self, name: str) -> T:
        """The extension of that name; imports the distribution that brings it. Not for our own names.

        Raises:
          InvalidSetting: If there is none, two distributions bring it, or it cannot be imported.
        """
        self.check(name)
        self._check_name(name)
        if name in self._registered:
            return self._registered[name]
        point = self._point(name)
        try:
            loaded: Any = point.load()
        except Exception as error:
            raise InvalidSetting(
                f"{self.setting}={name} cannot be imported from {self.origin(name)} ({type(error).__name__}: {error}); check "
                "that distribution"
            ) from error
        value: T = loaded
        return value

    def origin(self, name: str) -> Origin:
        """Where the extension of that name comes from.

        Raises:
          InvalidSetting: If there is none, or two distributions bring it.
        """
        self.check(name)
        if name in self._registered:
            return Origin(distribution="this process", version="")
        distribution = self._point(name).dist
        if distribution is None:
            return Origin(distribution="unknown", version="")
        return Origin(distribution=distribution.name, version=distribution.version)

    def _points(self) -> tuple[EntryPoint, ...]:
        return tuple(point for point in entry_points(group=self.group) if NAME.fullmatch(point.name))

    def _point(self, name: str) -> EntryPoint:
        points = {point.value: point for point in self._points() if point.name == name}
        if len(points) != 1:
            sources = ", ".join(sorted(point.dist.name if point.dist else "unknown" for point in points.values()))
            raise InvalidSetting(
                f"{self.setting}={name} must come from one distribution, not from {sources}; remove one of them"
            )
        (point,) = points.values()
        return point

    def _check_name(self, name: str) -> None:
        if name in self.built_in:
            raise InvalidSetting(f"{self.setting}={name} is mammo-fed's own; choose another name")
        if not NAME.fullmatch(name):
            raise InvalidSetting(f"{name!r} must be 1 to 64 letters, digits, dots, dashes and underscores, a letter first")
