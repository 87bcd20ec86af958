"""Named arrays on disk under the hash of what they were made from: made once, then memory-mapped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.private_files import sync_folder, user_folder
from mammo_fed.errors import InvalidSetting, RunFailed

__all__ = ["ArrayCache", "default_cache_root"]

STALE_SECONDS: Final = 24 * 3600

_KEY: Final = re.compile(r"[0-9a-f]{8,128}")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MANIFEST: Final = "manifest.json"
_PRIVATE: Final = 0o700


def default_cache_root() -> Path:
    """Folder of the cache: MAMMO_FED_CACHE, else XDG_CACHE_HOME/mammo-fed, else ~/.cache/mammo-fed. Nothing is made yet.

    Raises:
      InvalidSetting: If neither variable is set and the user has no home folder.
    """
    return user_folder("MAMMO_FED_CACHE", shared="XDG_CACHE_HOME", usual=".cache", what="the cache")


class ArrayCache:
    """A content-addressed store of named numpy arrays that several processes may share.

    An entry is a folder `root/<first 2 digits>/<key>/` with one .npy file per array and a manifest. It is written beside its
    place and renamed into it, so a reader sees a whole entry or none. Folders are readable by their owner only, since the
    arrays come from patients.

    Attributes:
      root: folder of the cache, made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __contains__(self, key: object) -> bool:
        """Whether an entry is there and its files are as its manifest says; a key that is no hash raises InvalidSetting."""
        return isinstance(key, str) and self._load(self._entry(key), verify=False) is not None

    def get_or_make(
        self, key: str, make: Callable[[], Mapping[str, NDArray[Any]]], *, verify: bool = False
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays under `key`, memory-mapped and read-only; `make` is called if they are not there or are damaged.

        Two processes that miss the same key at once both make it; the first to finish keeps its copy and both read that one.
        Where both replace a damaged entry, each reads a whole one, of either.

        Args:
          key: hash of everything that the arrays depend on, 8 to 128 lower-case hex digits.
          make: gives the arrays by name (lower-case letters, digits and underscores). What it raises passes through.
          verify: also compare the files' SHA-256 with the manifest: reads every byte, finds silent corruption.

        Returns:
          The arrays by name. They stay readable if the entry is removed meanwhile.

        Raises:
          InvalidSetting: If the key or a name breaks its rule, or an array holds Python objects.
          RunFailed: If the cache folder cannot be written.
        """
        entry = self._entry(key)
        found = self._load(entry, verify=verify)
        if found is not None:
            return found
        made = make()
        try:
            written = self._install(entry, made, verify=verify)
        except OSError as error:
            raise RunFailed(
                f"cache {self.root} cannot be written ({error.strerror}); free disk space or set MAMMO_FED_CACHE elsewhere"
            ) from error
        if written is None:
            raise RunFailed(f"cache {self.root} loses what is written to it; check the disk or set MAMMO_FED_CACHE elsewhere")
        return written

    def _entry(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InvalidSetting(f"key={key!r} must be 8 to 128 lower-case hex digits; use a hash's hexdigest")
        return self.root / key[:2] / key

    def _load(self, entry: Path, *, verify: bool) -> Mapping[str, NDArray[Any]] | None:
        """The entry's arrays, or None where it is missing or damaged in any way."""
        try:
            manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
            return MappingProxyType({name: _map(entry, name, about, verify) for name, about in manifest["arrays"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Whatever is wrong with an entry, making it again is right: it depends on its key alone.
            return None

    def _install(self, entry: Path, arrays: Mapping[str, NDArray[Any]], *, verify: bool) -> Mapping[str, NDArray[Any]] | None:
        """Write beside the entry's place, then rename into it; if another process was faster, its copy stays and is read."""
        self.root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        entry.parent.mkdir(mode=_PRIVATE, exist_ok=True)
        self._remove_stale()
        with _folder_beside(entry) as folder:
            # One level down: what is left after the rename, or after losing, is removed with the outer folder.
            whole = folder / "entry"
            whole.mkdir(mode=_PRIVATE)
            _write(whole, arrays)
            # Mapped before the rename: a map outlives its file's name, so whatever others do to the entry, this one holds.
            own = self._load(whole, verify=verify)
            # The rename itself decides who was first: a look beforehand could discard what another process has just put there.
            if not _rename_unless_taken(whole, entry) and self._load(entry, verify=verify) is None:
                _discard(entry)
                _rename_unless_taken(whole, entry)
            winner = self._load(entry, verify=verify)
        return own if winner is None else winner

    def _remove_stale(self) -> None:
        """Remove what writers left behind that died more than a day ago."""
        oldest = time.time() - STALE_SECONDS
        for folder in self.root.glob("[0-9a-f][0-9a-f]/.*.tmp"):
            try:
                stale = folder.stat().st_mtime < oldest
            except FileNotFoundError:
                continue
            if stale:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folder_beside(entry: Path) -> Iterator[Path]:
    """A private temporary folder on the entry's file system, removed in the end with all it holds."""
    folder = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}.", suffix=".tmp", dir=entry.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """One .npy file per array, then the manifest; all on the disk when this returns."""
    manifest = {name: _write_array(folder, name, np.asarray(arrays[name])) for name in arrays}
    with (folder / _MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"arrays": manifest}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _write_array(folder: Path, name: str, array: NDArray[Any]) -> dict[str, object]:
    """Write one array; its entry of the manifest."""
    if not _NAME.fullmatch(name):
        raise InvalidSetting(f"array name {name!r} must be lower-case letters, digits and underscores, letter first; rename it")
    if array.dtype.hasobject:
        raise InvalidSetting(f"array {name} has dtype {array.dtype}; the cache keeps numbers only, convert it")
    with (folder / f"{name}.npy").open("wb+") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = file.read(size - array.nbytes)
        file.seek(0)
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "bytes": size,
        "header_bytes": len(header),
        "header_sha256": hashlib.sha256(header).hexdigest(),
        "sha256": whole,
    }


def _map(entry: Path, name: str, about: Mapping[str, Any], verify: bool) -> NDArray[Any]:
    """One array of an entry, memory-mapped.

    Raises:
      ValueError: If the file is not what the manifest says.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"array name {name!r} is not one that the cache writes")
    path = entry / f"{name}.npy"
    with path.open("rb") as file:
        # The header's hash first: numpy then never parses a damaged header.
        header = file.read(about["header_bytes"])
        intact = hashlib.sha256(header).hexdigest() == about["header_sha256"]
        intact &= file.seek(0, os.SEEK_END) == about["bytes"]
        if intact and verify:
            file.seek(0)
            intact = hashlib.file_digest(file, "sha256").hexdigest() == about["sha256"]
    if not intact:
        raise ValueError(f"{path} is not the file that its manifest describes")
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.str != about["dtype"] or list(array.shape) != about["shape"]:
        raise ValueError(f"{path} has another type or shape than its manifest says")
    return array


def _discard(entry: Path) -> None:
    """Take a damaged entry out of sight in one step, then remove it; none there is fine."""
    with _folder_beside(entry) as folder, suppress(FileNotFoundError):
        os.rename(entry, folder / "damaged")


def _rename_unless_taken(folder: Path, entry: Path) -> bool:
    """Put the folder in the entry's place; False, and nothing done, if a file or a folder with content is there."""
    try:
        os.rename(folder, entry)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    sync_folder(entry.parent)
    return True
