"""Files that appear in a folder all at once: whatever kills the process, what is there is the old fit or the new one.

A new folder is filled under a temporary name beside its place and renamed. In a folder that holds a fit, the new files
come under names of their own beside the old ones; then one rename replaces the manifest, which names the files that
count, and the old ones are removed. Files that no manifest names are the user's and stay.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ppgen.errors import FileError

__all__ = ["create", "is_left", "is_own_name", "own_name", "replace", "write_flushed", "write_whole", "writing"]

NEW = ".ppgen-new"  # how the name of a file ends that is being written
DIGITS = 16  # of a file's digest in its name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in words why the disk refuses a file."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"save: {path} must be written, got: {error.strerror}; earlier files there are intact, free some space or "
            "name another place"
        ) from error


def own_name(name: str, digest: str) -> str:
    """The name of a file that stands beside an older one: ``history-<16 digits>.csv`` for ``history.csv``."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{digest[:DIGITS]}{suffix}"


def is_own_name(found: str, name: str) -> bool:
    """Tell whether ``found`` is what `own_name` made of ``name``."""
    stem, suffix = map(re.escape, os.path.splitext(name))
    return re.fullmatch(rf"{stem}-[0-9a-f]{{{DIGITS}}}{suffix}", found) is not None


def is_left(found: str, name: str) -> bool:
    """Tell whether the file ``found`` may be what a killed run left that was writing ``name``."""
    inner = found[1 : -len(NEW)] if found.startswith(".") and found.endswith(NEW) else None
    return is_own_name(found, name) or inner == name or (inner is not None and is_own_name(inner, name))


def create(target: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder ``target``, which is not there or empty, with these files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, data in files.items():
            write_flushed(scratch / name, data)
        scratch.chmod(0o755)
        _flush_folder(scratch)
        if target.exists():
            target.rmdir()
        scratch.rename(target)
        _flush_folder(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replace(target: Path, files: Mapping[str, bytes], manifest: tuple[str, bytes], old: Collection[str]) -> None:
    """Put ``files``, by their `own_name`, and the ``manifest`` that names them in the place of the ``old`` files.

    Nobody else may write to the folder meanwhile (:mod:`ppgen.storage.lock`).
    """
    last, sealed = manifest
    there = set(_names(target))
    try:
        for name, data in files.items():
            write_whole(target / name, data)
        write_whole(target / last, sealed)
    except BaseException:
        if not (target / last).is_file() or (target / last).read_bytes() != sealed:
            _remove(target, set(files) - there)
        raise
    plain = {_plain_name(name) for name in files} | {last}
    left = {found for found in _names(target) if any(is_left(found, name) for name in plain)}
    _remove(target, (left | set(old)) - set(files))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _plain_name(own: str) -> str:
    return re.sub(rf"-[0-9a-f]{{{DIGITS}}}(?=\.\w+$)", "", own)


def _remove(folder: Path, names: Collection[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):  # a file too many harms nobody
            (folder / name).unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write one file all at once, in the place of an older one of its name."""
    fresh = path.with_name(f".{path.name}{NEW}")
    try:
        write_flushed(fresh, data)
        os.replace(fresh, path)
        _flush_folder(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file and see that it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
