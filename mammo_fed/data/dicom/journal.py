"""What an ingestion has made already: a line for every patch, so that one that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from mammo_fed.data.dicom.findings import Finding, Skipped, files_of
from mammo_fed.data.dicom.image.headers import regular
from mammo_fed.data.dicom.patch import MadePatch

__all__ = ["Journal", "hash_of"]


class Journal:
    """The lines beside a cohort's patches.

    Args:
      path: of the file; need not exist.
      patches: folder of the PNG files.
    """

    def __init__(self, path: Path, patches: Path) -> None:
        self._path, self._patches = path, patches
        self._file: TextIO | None = None

    def kept(
        self,
        found: Mapping[str, Finding],
        *,
        stamp_of: Callable[[Finding], str],
        processes: int,
        on_check: Callable[[int, int], None],
    ) -> dict[str, MadePatch]:
        """Patches of an earlier run that still are what this one would make.

        Sizes and times of files tell nothing of their content: an export may replace one by another of the same of both. So
        every source is read and compared.

        Args:
          found: what is wanted, by pseudonym.
          stamp_of: of a finding: changes with everything but the content of its files.
          processes: how many read at once.
          on_check: called with (files compared, files in all).
        """
        listed = dict(self._listed(found, stamp_of))
        paths = {path for name in listed for path in files_of(found[name])}
        hashes = _hashes(paths, processes=processes, on_check=on_check)
        return {
            name: patch
            for name, patch in listed.items()
            if "" not in patch.sources and patch.sources == tuple(hashes[path] for path in files_of(found[name]))
        }

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lines can be added."""
        self._path.touch(mode=0o600)
        with self._path.open("a", encoding="utf-8") as self._file:
            yield
        self._file = None

    def note(self, patch: MadePatch, *, stamp: str) -> None:
        """Add a line."""
        if self._file is not None:
            self._file.write(json.dumps({"stamp": stamp, "patch": asdict(patch)}, sort_keys=True) + "\n")

    def flush(self) -> None:
        """What was added outlives the process."""
        if self._file is not None:
            self._file.flush()

    def _listed(self, found: Mapping[str, Finding], stamp_of: Callable[[Finding], str]) -> Iterator[tuple[str, MadePatch]]:
        try:
            # A disk that lost power leaves bytes that are no text.
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                values = json.loads(line)
                patch = _patch_of(values["patch"])
                if patch.name in found and values["stamp"] == stamp_of(found[patch.name]) and self._intact(patch):
                    yield patch.name, patch
            except (ValueError, KeyError, TypeError, RecursionError):
                # The last line of a run that was killed, or of another program.
                continue

    def _intact(self, patch: MadePatch) -> bool:
        try:
            content = (self._patches / f"{patch.name}.png").read_bytes()
        except OSError:
            return False
        return hashlib.sha256(content).hexdigest() == patch.sha256


def hash_of(path: Path) -> str:
    """SHA-256 of a file; "" where it cannot be read."""
    try:
        with regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Skipped:
        return ""


def _patch_of(values: dict[str, Any]) -> MadePatch:
    """A line's patch.

    Raises:
      TypeError: If it is none; others for values of another kind.
    """
    patch = MadePatch(**{**values, "sources": tuple(values["sources"])})
    texts = (patch.name, patch.view, patch.sha256, *patch.sources, *patch.provenance, *dict(patch.provenance).values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a patch is noted in words")
    return patch


def _hashes(paths: Collection[Path], *, processes: int, on_check: Callable[[int, int], None]) -> dict[Path, str]:
    """SHA-256 of files, "" for those that cannot be read."""
    hashes: dict[Path, str] = {}
    ordered = sorted(paths)
    # Threads: no decoder looks at the files, and hashing lets others run.
    with ThreadPoolExecutor(processes) as pool:
        for path, sha256 in zip(ordered, pool.map(hash_of, ordered), strict=True):
            hashes[path] = sha256
            on_check(len(hashes), len(ordered))
    return hashes
