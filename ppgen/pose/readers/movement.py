"""movement-style datasets, from netCDF or memory; dims keypoints, individuals or keypoint, individual."""

import importlib
import importlib.util
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from ppgen.errors import FileError
from ppgen.pose.readers.hdf5 import hard, open_hdf5, read_array
from ppgen.pose.readers.limits import MEMORY_LIMIT
from ppgen.pose.recording import SPACE, Track

__all__ = ["read", "read_dataset", "read_with_movement", "recognises"]

RENAMED = {"keypoints": "keypoint", "individuals": "individual"}


def recognises(file: h5py.File, path: Path) -> bool:
    """Tell whether a netCDF-4 file has a variable ``position``."""
    return isinstance(hard(file, "position"), h5py.Dataset)


def read(path: Path) -> list[Track]:
    """One track per individual of a netCDF file."""
    engine = "h5netcdf" if h5py.is_hdf5(path) else "scipy"
    if engine == "h5netcdf":
        with open_hdf5(path) as file:
            for name in ("position", "confidence"):
                if hard(file, name) is not None:
                    read_array(file, name, path)
    elif path.stat().st_size > MEMORY_LIMIT:
        raise FileError(f"{path}: must be smaller than {MEMORY_LIMIT / 2**30:g} GiB; split the recording")
    try:
        with xr.open_dataset(path, engine=engine, decode_times=False) as dataset:
            return read_dataset(dataset.load(), str(path))
    except FileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise FileError(
            f"{path}: must be a movement netCDF file, reading it failed ({error}); save it again"
        ) from error


def read_dataset(dataset: xr.Dataset, who: str) -> list[Track]:
    """One track per individual of a Dataset with ``position`` (time, space, keypoints[, individuals]).

    Raises
    ------
    FileError : no variable ``position``, or other dims.
    """
    dataset = dataset.rename({old: new for old, new in RENAMED.items() if old in dataset.dims})
    if "position" not in dataset:
        raise FileError(f"{who}: must have a variable 'position', it has {list(map(str, dataset.data_vars))[:6]}")
    position = dataset["position"]
    if "individual" not in position.dims:
        position = position.expand_dims("individual")
    dims = ("individual", "time", "keypoint", "space")
    if set(position.dims) != set(dims) or "keypoint" not in position.coords or position.dtype.kind not in "fiu":
        raise FileError(
            f"{who}: position must hold numbers with dims time, space, keypoints, individuals and named keypoints, "
            f"got {tuple(map(str, position.dims))} {position.dtype}; rename them"
        )
    position = _ordered_space(position.transpose(*dims), who)
    individuals = [str(i) for i in position["individual"].values] if "individual" in position.coords else [None]
    confidence = _confidence(dataset, position, who)
    written = np.asarray(dataset.attrs.get("fps", np.nan))
    fps = float(written.item()) if written.size == 1 and written.dtype.kind in "fiu" and written > 0 else None
    return [
        Track(
            tuple(str(k) for k in position["keypoint"].values),
            position.values[i].astype(np.float64),
            None if confidence is None else confidence[i],
            name,
            fps=fps,
        )
        for i, name in enumerate(individuals)
    ]


def read_with_movement(path: Path, software: str, fps: float | int | None) -> list[Track]:
    """Let the ``movement`` package read what ppgen does not know itself.

    Raises
    ------
    FileError : the package is not installed, or cannot read the file.
    """
    if importlib.util.find_spec("movement") is None:
        raise FileError(f"{path}: format {software!r} is read by the package movement; pip install 'ppgen[movement]'")
    io = importlib.import_module("movement.io")
    try:
        if hasattr(io, "load_dataset"):
            dataset = io.load_dataset(str(path), source_software=software, fps=fps)
        else:
            dataset = importlib.import_module("movement.io.load_poses").from_file(str(path), software, fps=fps)
    except Exception as error:  # whatever another library raises on a bad file
        raise FileError(f"{path}: movement cannot read it as {software} ({error}); check the file") from error
    return read_dataset(dataset, str(path))


def _ordered_space(position: xr.DataArray, who: str) -> xr.DataArray:
    if "space" not in position.coords:
        return position
    axes = [str(s) for s in position["space"].values]
    if axes not in (list(SPACE[:2]), list(SPACE)) and sorted(axes) not in (list(SPACE[:2]), list(SPACE)):
        raise FileError(f"{who}: space must be labelled x, y or x, y, z, got {axes}; convert to Cartesian coordinates")
    return position.sel(space=sorted(axes))


def _confidence(dataset: xr.Dataset, position: xr.DataArray, who: str) -> np.ndarray | None:
    if "confidence" not in dataset:
        return None
    confidence = dataset["confidence"]
    if "individual" not in confidence.dims:
        confidence = confidence.expand_dims("individual")
    if set(confidence.dims) != {"individual", "time", "keypoint"} or confidence.dtype.kind not in "fiu":
        raise FileError(f"{who}: confidence must have dims time, keypoints, individuals, got {confidence.dims}")
    values = confidence.transpose("individual", "time", "keypoint").values.astype(np.float64)
    return None if np.isnan(values).all() else values
