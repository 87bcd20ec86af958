"""Files and folders of one person and one process: replaced whole or not at all, closed to others, locked while in use."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from mammo_fed.errors import DataError, InvalidSetting

__all__ = [
    "SECRET_BYTES",
    "check_private",
    "exclusive",
    "file_lock",
    "is_locked",
    "hex_secret",
    "load_or_create",
    "load_or_create_secret",
    "new_folder",
    "sync_folder",
    "user_folder",
    "write_atomically",
    "write_private",
]

PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
SHARED_FILE: Final = 0o666
SECRET_BYTES: Final = 32
HEX_DIGITS: Final = 96


@contextmanager
def new_folder(path: Path, *, last: str) -> Iterator[Path]:
    """Fill a folder that is not there yet: the caller writes into a draft, which becomes `path` when the block ends well.

    A folder that exists and is empty is taken, for it may be a mounted volume. All that the block wrote is on the disk when
    this ends: a power loss leaves no key or certificate that is named and empty.

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
        _sync_tree(draft)
        for entry in sorted(draft.iterdir(), key=lambda entry: entry.name == last):
            entry.rename(path / entry.name)
        draft.rmdir()
        sync_folder(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if made:
            with suppress(OSError):
                path.rmdir()
        raise


def write_atomically(path: Path, content: bytes | str, *, mode: int = SHARED_FILE) -> Path:
    """Replace `path` in one step by a file that is on the disk when this returns.

    Readers, and whoever looks after a crash or a power loss, find the old file or the new one, never a part of either. Where
    this raises before the new file has its name, the old one is as it was and no draft is left.

    Args:
      path: the file; its folder must exist.
      content: all of it; text is written as UTF-8.
      mode: permissions of the new file, less the umask, whatever those of the old one were.

    Raises:
      OSError: If the disk is full or the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_new(draft, content.encode() if isinstance(content, str) else content, mode=mode)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def write_private(path: Path, content: bytes | str) -> Path:
    """`write_atomically` for a file that its owner alone may read."""
    return write_atomically(path, content, mode=PRIVATE_FILE)


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk: a rename outlives a power loss only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Return when all that lies below `folder` is on the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def load_or_create_secret(path: Path) -> bytes:
    """The 32 random bytes in the file `path`, made on first use, mode 0600; two processes that make it at once get the same.

    Raises:
      OSError: If it can neither be read nor made.
      DataError: If the file has another length: a key that was cut would protect nothing.
    """
    path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    secret = load_or_create(path, secrets.token_bytes(SECRET_BYTES))
    if len(secret) != SECRET_BYTES:
        raise DataError(f"{path} has {len(secret)} bytes and must have {SECRET_BYTES}; restore it from a backup")
    return secret


def load_or_create(path: Path, content: bytes) -> bytes:
    """What the file `path` holds: `content`, mode 0600, where nobody made it before; of two that make it at once one is first.

    Raises:
      OSError: If it can neither be read nor made.
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            _write_new(draft, content, mode=PRIVATE_FILE)
            # A link, unlike a rename, never replaces what is there.
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    return path.read_bytes()


def hex_secret(path: Path) -> tuple[str, bool]:
    """The secret of HEX_DIGITS hex digits that processes of this machine share, and whether the file had held something else.

    It lives no longer than the processes that read it: one that was cut or emptied is replaced, before they start.

    Raises:
      OSError: If it can neither be read nor made.
    """
    try:
        found = path.read_bytes().strip()
    except FileNotFoundError:
        found, damaged = b"", False
    else:
        damaged = len(found) != HEX_DIGITS or not all(byte in b"0123456789abcdef" for byte in found)
    if found and not damaged:
        return found.decode("ascii"), False
    secret = secrets.token_hex(HEX_DIGITS // 2)
    write_private(path, secret)
    return secret, damaged


def user_folder(variable: str, *, shared: str, usual: str, what: str) -> Path:
    """The user's folder of one kind: what `variable` says, else `shared`/mammo-fed, else ~/`usual`/mammo-fed; not made yet.

    Args:
      variable: of the environment, of our own.
      shared: variable of the XDG specification.
      usual: where that folder is where no variable says so, below the home folder.
      what: lies there, for the message.

    Raises:
      InvalidSetting: If neither variable is set and the user has no home folder.
    """
    if chosen := os.environ.get(variable):
        return Path(chosen).absolute()
    found = Path(os.environ.get(shared, ""))
    # The XDG specification: a relative path there is invalid and is ignored.
    if found.is_absolute():
        return found / "mammo-fed"
    try:
        return Path.home() / usual / "mammo-fed"
    except RuntimeError as error:
        raise InvalidSetting(f"{what} has no folder, for there is no home folder; set {variable}") from error


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
def file_lock(path: Path, *, what: str, folder: Path | None = None, seconds: float = 0.0) -> Iterator[None]:
    """Have the lock file `path` for as long as the block runs; the system releases it when the process dies.

    Args:
      path: the lock file.
      what: names the process that has it, for the message.
      folder: that it stands for; by default the one above the file's own.
      seconds: to wait for who has it.

    Raises:
      InvalidSetting: If another process has it.
    """
    lock = _lock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise InvalidSetting(
            f"FOLDER={folder or path.parent.parent} is in use by another {what}; stop that one first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether somebody has the lock file `path`. Any number may look at once, and nobody takes a look for a lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Run the block alone among all threads and processes that name the lock file `path`: the others wait for their turn."""
    with _lock(path):
        yield


def _lock(path: Path) -> FileLock:
    # A file system without locks must fail: a lock made of a file's existence would outlive a process that was killed.
    return FileLock(path, mode=PRIVATE_FILE, fallback_to_soft=False)


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that was not there, and return when its content is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
