"""Files by which one process tells others what it does: one JSON object, or one a line that is appended and read as it grows.

A line that a crash or a full disk cut short is skipped by readers, and the next one starts on a line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["LineReader", "append_line", "last_lines", "read_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object of a file; empty where there is no file, or it cannot be read, or holds something else.

    What it holds is not checked: who shows it must take any value for any key.
    """
    try:
        return _object(path.read_bytes()) or {}
    except OSError:
        return {}


def append_line(path: Path, value: Mapping[str, object], *, most_bytes: int | None = None) -> None:
    """Append one value; the file is readable by its owner only.

    Args:
      path: of the file.
      value: strict JSON.
      most_bytes: a file above that is put aside once as NAME.1 before; None lets it grow.

    Raises:
      OSError: If it cannot be written.
    """
    content = json.dumps(value, allow_nan=False).encode() + b"\n"
    if most_bytes is not None and path.exists() and path.stat().st_size > most_bytes:
        path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * cut + content)
    finally:
        os.close(descriptor)


class LineReader:
    """Reads values as they come.

    Args:
      path: of the file; it need not be there yet, and may be begun anew.
      seen: whether what is there now has been read before.
    """

    def __init__(self, path: Path, *, seen: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if seen and path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """Objects since the last call, without lines that were cut short."""
        try:
            with self._path.open("rb") as file:
                # Smaller than before: it was put aside, and this is another file.
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [found for line in whole.splitlines() if (found := _object(line)) is not None]


def last_lines(path: Path, *, most_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The objects at the end of a file, the oldest first; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most_bytes))
            content = file.read()
    except OSError:
        return []
    return [found for line in content.splitlines() if (found := _object(line)) is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
