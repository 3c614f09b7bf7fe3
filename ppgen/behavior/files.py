"""Files that the syllable tools write into a folder and read back: tables, groups, HDF5."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ppgen.errors import DataError, FileError

__all__ = [
    "Labelled", "copies", "labels_of", "read_groups", "read_labels", "read_run", "safe_names", "write_groups",
    "write_json", "write_results", "write_table",
]  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """One labelled recording: T frames, K syllables, L latent coordinates, 2 or 3 axes of space.

    Attributes
    ----------
    name : of the recording.
    fps : frames per second.
    probabilities : (T, K) of each syllable, float32; NaN where the syllable is -1.
    syllable : (T,) the syllables of the most probable path through the whole recording, which in a few frames is not
        the most probable syllable of the frame alone; -1 after the last frame in which anything was seen.
    latent : (T, L) posterior mean of the pose's latent coordinates.
    centroid, heading : (T, 2|3) in the recording's own units, (T,) in radians.
    start : number of the first frame in its file.
    """

    name: str
    fps: float
    probabilities: np.ndarray
    syllable: np.ndarray
    latent: np.ndarray
    centroid: np.ndarray
    heading: np.ndarray
    start: int = 0

    @property
    def frame(self) -> np.ndarray:
        """(T,) number of each frame in its file."""
        return self.start + np.arange(len(self.syllable))

    @property
    def states(self) -> int:
        """Number of syllables K, used or not."""
        return self.probabilities.shape[1]

    @property
    def probability(self) -> np.ndarray:
        """(T,) probability of the frame's own syllable; NaN where it has none."""
        return self.probabilities[np.arange(len(self.syllable)), self.syllable]


def labels_of(labelled: Iterable[Labelled]) -> dict[str, np.ndarray]:
    """Recording -> syllable (T,) of each frame."""
    return {one.name: one.syllable for one in labelled}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with two spaces, readable and diffable."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a folder that ``fit`` or ``apply`` wrote."""
    path = folder / "run.json"
    if not path.is_file():
        raise FileError(
            f"results: {folder} must be a folder that fit or apply wrote, it has no run.json; check the path"
        )
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return {**run, "fps": float(run["fps"]), "states": int(run["states"])}
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"results: {path} is damaged ({error}); run fit or apply again") from error


def write_table(path: Path, labelled: Labelled) -> None:
    """One CSV per recording: frame, time (s), syllable, probability, centroid, heading (radians), latents."""
    axes = "xyz"[: labelled.centroid.shape[1]]
    table = pd.DataFrame({
        "frame": labelled.frame,
        "time": (labelled.frame / labelled.fps).round(6),
        "syllable": labelled.syllable,
        "probability": labelled.probability,
        **{f"centroid_{axis}": labelled.centroid[:, i] for i, axis in enumerate(axes)},
        "heading": labelled.heading,
        **{f"latent_{i}": column for i, column in enumerate(labelled.latent.T)},
    })  # fmt: skip
    table.to_csv(path, index=False, float_format="%.8g")


def write_results(path: Path, recordings: Iterable[Labelled]) -> None:
    """``results.h5`` in keypoint-moseq's layout, a group per recording, with the probabilities beside it."""
    import h5py

    with h5py.File(path, "w") as file:
        for one in recordings:
            group = file.create_group(one.name)
            group.attrs["fps"] = one.fps
            group["syllable"] = one.syllable.astype(np.int64)
            group["latent_state"], group["centroid"], group["heading"] = one.latent, one.centroid, one.heading
            group["probability"] = one.probability
            group.create_dataset("probabilities", data=one.probabilities, dtype="f4", compression="gzip", shuffle=True)


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    """Recording -> syllable of each frame, from the folder's ``syllables/*.csv``."""
    read_run(folder)
    paths = sorted((folder / "syllables").glob("*.csv"))
    if not paths:
        raise FileError(f"results: {folder} must hold syllables/*.csv, none is there; run fit or apply again")
    return {path.stem: _read_syllables(path) for path in paths}


def copies(folder: Path, names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of recordings in ``folder`` whose tables are the same to the last digit: one is a copy of the other."""
    first: dict[str, str] = {}
    found = []
    for name in names:
        digest = hashlib.sha256((folder / "syllables" / f"{name}.csv").read_bytes()).hexdigest()
        if digest in first:
            found.append((first[digest], name))
        first.setdefault(digest, name)
    return found


def write_groups(path: Path, names: Sequence[str], known: Mapping[str, str] | None = None) -> None:
    """``index.csv``: a row per recording with its group, for ``compare``; groups already known are kept."""
    groups = [(known or {}).get(name, "default") for name in names]
    pd.DataFrame({"name": list(names), "group": groups}).to_csv(path, index=False)


def read_groups(path: Path) -> dict[str, str]:
    """Recording -> group, from a CSV with the columns ``name`` and ``group``, both taken as text: ``001`` is no 1."""
    table = _read_csv(path, "a CSV with the columns name and group", text=True)
    if not {"name", "group"} <= set(table.columns):
        raise FileError(
            f"groups: {path} must have the columns name and group, got {', '.join(map(str, table.columns))}; add them"
        )
    rows = table[["name", "group"]].map(lambda text: text.strip() if isinstance(text, str) else "")
    if (rows == "").any(axis=None):
        line = int(np.flatnonzero((rows == "").any(axis=1))[0]) + 2
        raise FileError(f"groups: every row of {path} must have a name and a group, line {line} lacks one; fill it in")
    if rows["name"].duplicated().any():
        twice = rows.loc[rows["name"].duplicated(), "name"].iloc[0]
        raise FileError(f"groups: {path} must name each recording once, got {twice!r} twice; remove one")
    return dict(zip(rows["name"], rows["group"], strict=True))


def safe_names(names: Sequence[str]) -> list[str]:
    """Names that every file system takes, still one for each: other characters become ``_``.

    Raises
    ------
    DataError : two recordings have the same name (upper and lower case are the same on some systems).
    """
    safe = [re.sub(r"[^\w.()+=,@ -]", "_", name).strip(" .") or "recording" for name in names]
    seen: dict[str, str] = {}
    for name, key in zip(safe, (name.casefold() for name in safe), strict=True):
        if key in seen:
            raise DataError(f"recordings: each must have its own name, got {name!r} twice; rename one of the files")
        seen[key] = name
    return safe


def _read_syllables(path: Path) -> np.ndarray:
    table = _read_csv(path, "a table that fit or apply wrote")
    if "syllable" not in table.columns:
        raise FileError(f"results: {path} must have the column syllable, got {', '.join(map(str, table.columns))}")
    if not pd.api.types.is_integer_dtype(table["syllable"]):
        raise FileError(f"results: the column syllable of {path} must hold whole numbers; run fit or apply again")
    return table["syllable"].to_numpy(int)


def _read_csv(path: Path, kind: str, *, text: bool = False) -> pd.DataFrame:
    """Read a table. With ``text`` cells stay as they are written, so that 001 and NA are names."""
    if not path.is_file():
        raise FileError(f"file: {path} must be {kind}, there is no such file; check the path")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False) if text else pd.read_csv(path)
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FileError(f"file: {path} must be {kind}, it cannot be read as one ({error})") from error
