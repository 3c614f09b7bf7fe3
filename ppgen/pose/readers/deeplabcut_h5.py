"""DeepLabCut h5, both pandas layouts (*fixed* and *table*), without pandas, which would run the pickles inside."""

from pathlib import Path

import h5py
import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.deeplabcut import Column, tracks_from_columns
from ppgen.pose.readers.hdf5 import Group, attribute, hard, read_array, strings
from ppgen.pose.readers.pickled_names import decode_names
from ppgen.pose.recording import Track

__all__ = ["read", "recognises"]


def recognises(file: h5py.File, path: Path) -> bool:
    """Tell whether a table that pandas wrote stands at the top."""
    return _frame(file, path) is not None


def read(file: h5py.File, path: Path) -> list[Track]:
    """One track per individual.

    Raises
    ------
    FileError : no table, a pickled object instead of names, or arrays that do not fit together.
    """
    frame = _frame(file, path)
    if frame is None:
        raise FileError(f"{path}: must hold a DeepLabCut table, it has {sorted(file)[:6]}; export it again")
    if isinstance(hard(frame, "table"), h5py.Dataset):
        columns, values, index = _table_layout(frame, path)
    else:
        columns, values, index = _fixed_layout(frame, path)
    if values.shape != (len(index), len(columns)):
        raise FileError(f"{path}: {values.shape} values do not fit {len(index)} frames x {len(columns)} columns")
    return tracks_from_columns(columns, values, index, path)


def _frame(file: h5py.File, path: Path) -> Group | None:
    groups = (hard(file, name) for name in file)
    return next((g for g in groups if isinstance(g, h5py.Group) and attribute(g, "pandas_type", path)), None)


def _table_layout(frame: Group, path: Path) -> tuple[list[Column], np.ndarray, np.ndarray]:
    table = frame["table"]
    rows = read_array(frame, "table", path)
    names = rows.dtype.names or ()
    blocks = [name for name in names if name.startswith("values_block_")]
    if "index" not in names or not blocks:
        raise FileError(f"{path}: its table must have an index and values, it has {list(names)[:6]}; export it again")
    columns = [column for block in blocks for column in _block_columns(table, block, path)]
    values = [np.asarray(rows[block]).reshape(len(rows), -1) for block in blocks]
    return columns, np.concatenate([_numeric(v, path) for v in values], 1), rows["index"]


def _block_columns(table: h5py.Dataset, block: str, path: Path) -> list[Column]:
    raw = attribute(table, f"{block}_kind", path)
    try:
        columns = decode_names(raw if isinstance(raw, bytes) else str(raw).encode())
    except ValueError as error:
        raise FileError(f"{path}: the names of its columns cannot be trusted ({error}); export it as csv") from error
    if not isinstance(columns, list) or not all(isinstance(c, tuple) for c in columns):
        raise FileError(f"{path}: its columns must be named by 3 or 4 header rows, they are not; not a pose table")
    return [tuple(str(word) for word in column) for column in columns]


def _fixed_layout(frame: Group, path: Path) -> tuple[list[Column], np.ndarray, np.ndarray]:
    count = attribute(frame, "nblocks", path)
    parts = [_block(frame, f"block{i}", path) for i in range(1 if count is None else int(np.asarray(count)))]
    if not parts:
        raise FileError(f"{path}: its table must hold numbers, it is empty; export it again")
    columns = [column for names, _ in parts for column in names]
    return columns, np.concatenate([values for _, values in parts], 1), read_array(frame, "axis1", path)


def _block(frame: Group, block: str, path: Path) -> tuple[list[Column], np.ndarray]:
    columns = _multi_index(frame, f"{block}_items", path)
    values = _numeric(read_array(frame, f"{block}_values", path), path)
    transposed = attribute(frame[f"{block}_values"], "transposed", path)
    return columns, values if transposed is not None and np.asarray(transposed) else values.T


def _multi_index(frame: Group, name: str, path: Path) -> list[Column]:
    depth = attribute(frame, f"{name}_nlevels", path)
    if depth is None:
        raise FileError(f"{path}: its columns must be named by 3 or 4 header rows, they are not; not a pose table")
    words = []
    for level in range(int(np.asarray(depth))):
        labels = strings(read_array(frame, f"{name}_level{level}", path))
        codes = read_array(frame, f"{name}_label{level}", path)
        if codes.dtype.kind not in "iu" or codes.size and not 0 <= codes.min() <= codes.max() < len(labels):
            raise FileError(f"{path}: its column names are damaged (codes outside the labels); export it again")
        words.append([labels[code] for code in codes])
    return list(zip(*words, strict=True))


def _numeric(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise FileError(f"{path}: its table must hold numbers, it holds {values.dtype}; export it again")
    return values.astype(np.float64)
