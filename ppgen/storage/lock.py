"""A folder that one run writes at a time."""

import contextlib
import errno
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from ppgen.errors import FileError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LOCK", "held"]

LOCK = ".ppgen-lock"
ALREADY_LOCKED = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
LOCKED_BYTE = 1 << 20  # the byte that Windows locks: those before it can still be read


@contextlib.contextmanager
def held(folder: Path | None, who: str) -> Iterator[None]:
    """Keep ``folder`` to this run, and make it where it is missing; with None nothing is done.

    The system gives the folder free when the process ends, however it ends: the file `LOCK` that a killed run leaves
    behind holds nobody up.

    Raises
    ------
    FileError : another run holds the folder, or nothing can be written there.
    """
    if folder is None:
        yield
        return
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder, who)
    except OSError as error:
        raise FileError(
            f"{who}: {folder} must be a folder to write in, got: {error.strerror}; free some space or name another"
        ) from error
    try:
        yield
    finally:
        _release(folder / LOCK, descriptor)
        if new:
            with contextlib.suppress(OSError):  # the run wrote something there
                folder.rmdir()


def _locked(folder: Path, who: str) -> int:
    """An open and locked file in the folder that says whose it is."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, path, who)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it between our two calls: lock the one that is there now


def _take(descriptor: int, path: Path, who: str) -> None:
    """Lock the file or report who has it; a file system without locks is trusted, with a warning."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in ALREADY_LOCKED:
            owner = os.read(descriptor, 200).decode(errors="replace") if sys.platform != "win32" else ""
            raise FileError(
                f"{who}: {path.parent} must be written by one run at a time, {owner or 'another process'} is "
                "writing there; wait for it, or name another folder"
            ) from None
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{who}: {path.parent} cannot be locked on this file system; see that no other run writes to it",
            stacklevel=4,
        )


def _release(path: Path, descriptor: int) -> None:
    """Remove the file while it is still ours; Windows removes closed files only, and none that another has open."""
    with contextlib.suppress(OSError):
        if sys.platform != "win32":
            path.unlink()
    os.close(descriptor)
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            path.unlink()
