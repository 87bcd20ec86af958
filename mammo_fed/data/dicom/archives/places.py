"""Files of an archive: found as its tables spell them, without what other systems and interrupted downloads leave behind."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Final

from mammo_fed.data.dicom.findings import Skipped

__all__ = ["DICOM", "TIFF", "Places", "dicom_files", "distinct", "folders_named", "tables_named", "walk"]

DICOM: Final = (".dcm", ".dicom", ".ima")
TIFF: Final = (".tif", ".tiff")
# What archivers, systems and disks of others add; a DICOMDIR is a list of files and no image.
PASSED_OVER: Final = ("__macosx", "$recycle.bin", "#recycle", "@eadir", "lost+found", "system volume information", "dicomdir")
PREAMBLE: Final = 128
CHUNK: Final = 1 << 16


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders below, their folders and files, sorted, without hidden ones; take a name off to leave a folder alone."""
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield Path(path), folders, sorted(name for name in files if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in PASSED_OVER


def dicom_files(root: Path, folder: Path) -> list[Path]:
    """DICOM files of the archive `root` below `folder`, by name or by their mark, sorted; no link leads out of `root`."""
    top = root.resolve()
    found = [path / name for path, _, files in walk(folder) for name in files]
    return sorted(path for path in found if _inside(path, top) and (path.suffix.casefold() in DICOM or _marked(path)))


def _inside(path: Path, top: Path) -> bool:
    try:
        return path.is_file() and path.resolve().is_relative_to(top)
    except (OSError, RuntimeError):
        return False


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False


def folders_named(root: Path, pattern: re.Pattern[str]) -> dict[str, list[Path]]:
    """Folders below `root` whose name matches, by that name in lower case, wherever they lie; none within another."""
    found: dict[str, list[Path]] = {}
    for path, folders, _ in walk(root):
        for name in folders:
            if pattern.fullmatch(name):
                found.setdefault(name.casefold(), []).append(path / name)
        folders[:] = [name for name in folders if not pattern.fullmatch(name)]
    return found


def tables_named(root: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Tables below `root` whose name matches, sorted, each content once."""
    found = [path / name for path, _, files in walk(root) for name in files if pattern.fullmatch(name)]
    return distinct(path for path in sorted(found) if _inside(path, root.resolve()))


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are no copy of another, nor the part of one that an interrupted download left; in their order."""
    given = list(paths)
    kept: list[Path] = []
    for path in sorted(given, key=lambda one: -_size(one)):
        if not any(_part_of(path, whole) for whole in kept):
            # Of the same size, with nothing but zeros where the other has content: room that was never filled.
            kept = [other for other in kept if not _part_of(other, path)] + [path]
    return [path for path in given if path in kept]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _part_of(path: Path, whole: Path) -> bool:
    """Whether `path` begins as `whole` does, and holds nothing or only zeros from where it does not."""
    try:
        with path.open("rb") as part, whole.open("rb") as file:
            while chunk := part.read(CHUNK):
                other = file.read(CHUNK)
                if chunk != other[: len(chunk)]:
                    same = next((place for place, pair in enumerate(zip(chunk, other, strict=False)) if pair[0] != pair[1]), 0)
                    if same < len(other) and any(chunk[same:]):
                        return False
                    return not any(any(rest) for rest in iter(lambda: part.read(CHUNK), b""))
    except OSError:
        return False
    return True


class Places:
    """The files of an archive by what its tables call them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._names = lru_cache(maxsize=None)(_names)

    def find(self, text: str, suffixes: tuple[str, ...] = (*DICOM, *TIFF)) -> Path:
        """The file that a table means: backslashes separate folders; case, form of Unicode and suffix may differ.

        Args:
          text: what the table says, relative to the archive's folder.
          suffixes: that may be missing in the table or on the disk, where one file matches; of the table's kind if it has one.

        Raises:
          Skipped: If it is no path inside the folder, or there is not one such file.
        """
        for spelling in dict.fromkeys((text, text.replace("\\", "/"))):
            if found := self._spelt(self._parts(spelling), suffixes):
                if not found.resolve().is_relative_to(self.root):
                    raise Skipped("unusable_row", f"{text!r} is a link out of {self.root}; copy the file into it")
                return found
        raise Skipped("missing_file", f"{text!r} is not in {self.root}")

    def _parts(self, text: str) -> list[str]:
        parts = [part for part in text.strip().split("/") if part not in ("", ".")]
        if not parts or text.strip().startswith("/") or PureWindowsPath(text).anchor or ".." in parts or "\0" in text:
            raise Skipped("unusable_row", f"{text!r} must be a path relative to {self.root}, without ..")
        return parts

    def _spelt(self, parts: list[str], suffixes: tuple[str, ...]) -> Path | None:
        try:
            exact = self.root.joinpath(*parts)
            if exact.is_file():
                return exact
        except (OSError, ValueError):
            return None
        folders = [self.root]
        for part in parts[:-1]:
            folders = [folder / name for folder in folders for name in self._names(folder).get(_key(part), ())]
        alike = [folder / name for folder in folders for name in self._names(folder).get(_key(parts[-1]), ())]
        if not (alike := [path for path in alike if path.is_file()]):
            suffixes = next((kind for kind in (DICOM, TIFF) if _key(parts[-1]).endswith(kind)), suffixes)
            stem = _stem(_key(parts[-1]), suffixes)
            names = [(folder, key, name) for folder in folders for key, all_ in self._names(folder).items() for name in all_]
            alike = [folder / name for folder, key, name in names if _stem(key, suffixes) == stem and (folder / name).is_file()]
        if len(alike) > 1:
            raise Skipped("unusable_row", f"{'/'.join(parts)!r} names {len(alike)} files of {self.root}; name one of them")
        return alike[0] if alike else None


def _names(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            if not _hidden(name):
                found.setdefault(_key(name), []).append(name)
    except OSError:
        pass
    return found


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(key: str, suffixes: tuple[str, ...]) -> str:
    return next((key.removesuffix(suffix) for suffix in suffixes if key.endswith(suffix)), key)
