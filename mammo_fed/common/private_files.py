"""Folders that belong to one person and one process: made whole or not at all, closed to others, held by one at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mammo_fed.errors import InvalidSetting

__all__ = ["check_private", "held", "kept_secret", "new_folder", "write_private"]

PRIVATE_FOLDER = 0o700
SECRET_BYTES = 32


@contextmanager
def new_folder(path: Path, *, last: str) -> Iterator[Path]:
    """Fill a folder that is not there yet: the caller writes into a draft, which becomes `path` when the block ends well.

    A folder that exists and is empty is taken, for it may be a mounted volume.

    Args:
      path: the folder; mode 0700 afterwards.
      last: the entry by which others know the folder; it moves last.

    Raises:
      InvalidSetting: If `path` holds something already or cannot be made.
    """
    made = not path.exists()
    try:
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise InvalidSetting(
                f"FOLDER={path} must be new or empty, and it holds something: nothing is overwritten; choose another"
            )
        path.chmod(PRIVATE_FOLDER)
        draft = path / f".new-{secrets.token_hex(4)}"
        draft.mkdir(mode=PRIVATE_FOLDER)
    except OSError as error:
        raise InvalidSetting(
            f"FOLDER={path} cannot be made ({error.strerror}); choose a place that you may write to"
        ) from error
    try:
        yield draft
        for entry in sorted(draft.iterdir(), key=lambda entry: entry.name == last):
            entry.rename(path / entry.name)
        draft.rmdir()
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if made:
            with suppress(OSError):
                path.rmdir()
        raise


def write_private(path: Path, content: bytes) -> Path:
    """Replace `path` in one step by a file of mode 0600 that is on the disk when this returns."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def kept_secret(path: Path) -> bytes:
    """The 32 random bytes in the file `path`, made on first use, mode 0600; two processes that make it at once get the same.

    Raises:
      OSError: If it can neither be read nor made.
    """
    path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.touch(mode=0o600)
        fresh.write_bytes(secrets.token_bytes(SECRET_BYTES))
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_bytes()


def check_private(path: Path) -> None:
    """Raise InvalidSetting where `path` is missing or open to other users."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise InvalidSetting(f"{path} must be there ({error.strerror}); restore it from a backup") from error
    if mode & 0o077:
        wanted = "700" if path.is_dir() else "600"
        raise InvalidSetting(
            f"{path} has mode {mode:o} and must be closed to others: chmod {wanted} {path}, and find out who could read it"
        )


@contextmanager
def held(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` for as long as the block runs; the system lets go of it when the process dies.

    Raises:
      InvalidSetting: If another process holds it; `what` names that process for the message.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidSetting(f"FOLDER={path.parent.parent} is in use by another {what}; stop that one first") from error
        yield
    finally:
        os.close(descriptor)
