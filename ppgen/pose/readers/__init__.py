"""One file per format. `find_format` looks at the content, never at the name alone."""

from pathlib import Path

import h5py

from ppgen.errors import FileError
from ppgen.pose.readers import (
    anipose,
    deeplabcut_csv,
    deeplabcut_h5,
    movement,
    npz,
    sleap_analysis,
    sleap_labels,
)
from ppgen.pose.readers.hdf5 import open_hdf5
from ppgen.pose.readers.table import open_table
from ppgen.pose.recording import Track

__all__ = ["FORMATS", "find_format", "read_tracks"]

HDF5_READERS = {
    "sleap_analysis": sleap_analysis,
    "sleap_labels": sleap_labels,
    "deeplabcut_h5": deeplabcut_h5,
    "movement": movement,
}
TEXT_READERS = {
    "lightning_pose": (deeplabcut_csv.is_lightning_pose, deeplabcut_csv.read),
    "deeplabcut_csv": (deeplabcut_csv.is_deeplabcut, deeplabcut_csv.read),
    "anipose": (anipose.recognises, anipose.read),
}

FORMATS = (*TEXT_READERS, *HDF5_READERS, "npz")
"""The formats that ppgen reads itself."""


def find_format(path: Path) -> str:
    """The format that a file's content shows.

    Raises
    ------
    FileError : None of the known ones; the message names them.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if h5py.is_hdf5(path) or start.startswith(b"\x89HDF"):
        return _hdf5_format(path)
    if start.startswith(b"CDF"):
        return "movement"
    if start.startswith(b"PK"):
        return "npz"
    table = open_table(path)
    if not table.head:
        raise FileError(f"{path}: must hold poses, it is empty; export it again")
    for name, (recognises, _) in TEXT_READERS.items():
        if recognises(table):
            return name
    raise unknown(path, f"its first row begins {str(table.head[0])[:60]}")


def read_tracks(path: Path, name: str, fps: float | int | None) -> list[Track]:
    """Read a file in a known format, or in ``movement:<software>``."""
    if name.startswith("movement:"):
        return movement.read_with_movement(path, name.removeprefix("movement:"), fps)
    if name in TEXT_READERS:
        table = open_table(path)
        if not table.head:
            raise FileError(f"{path}: must hold poses, it is empty; export it again")
        return TEXT_READERS[name][1](table)
    if name == "npz":
        return npz.read(path)
    if name == "movement":
        return movement.read(path)
    if name in HDF5_READERS:
        with open_hdf5(path) as file:
            return {"sleap_analysis": sleap_analysis.read, "sleap_labels": sleap_labels.read}.get(
                name, deeplabcut_h5.read
            )(file, path)
    raise FileError(f"{path}: format must be one of {', '.join(FORMATS)} or movement:<software>, got {name!r}")


def unknown(path: Path, seen: str) -> FileError:
    """An error that names the known formats."""
    return FileError(
        f"{path}: must be a pose file in a known format ({', '.join(FORMATS)}), {seen}; "
        "give format=... , or format='movement:NWB' with the extra ppgen[movement]"
    )


def _hdf5_format(path: Path) -> str:
    with open_hdf5(path) as file:
        for name, reader in HDF5_READERS.items():
            if reader.recognises(file, path):
                return name
        members = sorted(file)
        if path.suffix.lower() == ".nwb":
            return "movement:NWB"
    raise unknown(path, f"this HDF5 file holds no poses, it has {members[:6]}")
