"""HDF5 from strangers: open, look before reading, never leave the file, never run what it holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.limits import refuse_bomb

__all__ = ["Group", "attribute", "hard", "open_hdf5", "read_array", "strings"]

Group = h5py.Group
LINK_LIMIT = 100_000
ATTRIBUTE_LIMIT = 2**24


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open for reading; anything HDF5 stumbles over, here or in the ``with`` block, becomes one `FileError`.

    A file with a link that leads out of it is refused as a whole, followed or not.
    """
    try:
        with h5py.File(path, "r") as file:
            _refuse_links(file, path)
            yield file
    except FileError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileError(
            f"{path}: must be a complete HDF5 file, reading it failed ({error}); it is damaged or was cut short, "
            "copy or export it again"
        ) from error


def hard(group: h5py.Group, name: str | bytes) -> h5py.Group | h5py.Dataset | None:
    """A member that is really there, not behind a soft link, or None."""
    link = group.get(name, getlink=True)
    return group[name] if isinstance(link, h5py.HardLink) else None


def read_array(group: h5py.Group, name: str, path: Path) -> np.ndarray:
    """Read one array after checking its type, its size and where its bytes lie.

    Raises
    ------
    FileError : it is absent, holds objects, lies in other files, or is far larger than what the file stores.
    """
    data = hard(group, name)
    if not isinstance(data, h5py.Dataset):
        raise FileError(f"{path}: must hold an array {_place(group, name)!r}, found none; export the file again")
    what = f"array {_place(group, name)!r}"
    if data.shape is None or not _plain(data.dtype):
        raise FileError(f"{path}: {what} must hold numbers or text, it holds {data.dtype} (a pickled object?)")
    if data.external or data.is_virtual:
        raise FileError(f"{path}: {what} must lie in this file, its bytes lie in another; copy them into one file")
    refuse_bomb(path, what, int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize, data.id.get_storage_size())
    return np.asarray(data[()])


def attribute(item: h5py.Group | h5py.Dataset, name: str, path: Path) -> str | bytes | np.ndarray | None:
    """An attribute, as str or bytes when it is text, or None when it is absent or empty."""
    if name not in item.attrs:
        return None
    if h5py.h5a.open(item.id, name.encode()).get_storage_size() > ATTRIBUTE_LIMIT:
        raise FileError(f"{path}: attribute {name!r} must be a short text, it is larger than 16 MiB")
    value = item.attrs[name]
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, str | bytes):
        return value if isinstance(value, str) else bytes(value)
    return np.asarray(value)


def strings(array: np.ndarray) -> tuple[str, ...]:
    """Decode an array of fixed or variable text to str."""
    return tuple(s.decode("utf-8", "replace") if isinstance(s, bytes) else str(s) for s in array.ravel().tolist())


def _refuse_links(file: h5py.File, path: Path) -> None:
    """Walk every group once, without following a link; low-level, because damaged names cannot be decoded."""
    waiting, seen, members = [file.id], set(), 0
    while waiting:
        group = waiting.pop()
        for name in group:
            members += 1
            if members > LINK_LIMIT:
                raise FileError(f"{path}: must be a pose file, it has more than {LINK_LIMIT} members")
            kind = group.links.get_info(name).type
            if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
                raise FileError(
                    f"{path}: must hold its own data, {name.decode(errors='replace')!r} is an external link; "
                    "copy the linked data into one file"
                )
            address = h5py.h5g.get_objinfo(group, name, follow_link=False).objno
            if kind == h5py.h5l.TYPE_HARD and address not in seen:
                seen.add(address)
                member = h5py.h5o.open(group, name)
                if isinstance(member, h5py.h5g.GroupID):
                    waiting.append(member)


def _plain(dtype: np.dtype) -> bool:
    if dtype.fields:
        return all(_plain(field[0]) for field in dtype.fields.values())
    if dtype.subdtype:
        return _plain(dtype.subdtype[0])
    return dtype.kind in "fiubS" or h5py.check_string_dtype(dtype) is not None


def _place(group: h5py.Group, name: str) -> str:
    return f"{group.name or ''}/{name}".replace("//", "/")
