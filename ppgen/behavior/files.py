"""What the syllable tools write and read back: a folder that appears whole or not at all, tables, HDF5."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ppgen.errors import DataError, FileError

__all__ = [
    "Labelled", "check_output", "labels_of", "output_folder", "read_groups", "read_labels", "read_run",
    "safe_names", "write_groups", "write_json", "write_results", "write_table",
]  # fmt: skip

OURS = {
    "syllables",
    "model",
    "compare",
    "match",
    "results.h5",
    "posterior.nc",
    "report.html",
    "index.csv",
    "syllables.csv",
    "run.json",
    "input",
}
"""What a run may have left in its folder; everything else there is the user's and survives ``--overwrite``."""


@dataclass(frozen=True)
class Labelled:
    """One labelled recording: T frames, K syllables, L latent coordinates, 2 or 3 axes of space.

    Attributes
    ----------
    name
        Of the recording.
    fps
        Frames per second.
    probabilities
        (T, K) of each syllable, float32; NaN where the syllable is -1.
    syllable
        (T,) the most probable syllable; -1 after the last frame in which anything was seen.
    latent
        (T, L) posterior mean of the pose's latent coordinates.
    centroid, heading
        (T, 2|3) in the recording's own units, (T,) in radians.
    start
        Number of the first frame in its file.
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


def check_output(out: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output folder that holds something, before the long work starts.

    With ``overwrite`` only a folder that a run of these tools wrote may be replaced, and none that holds an input.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise FileError(f"output: --out must be a folder, got the file {out}; choose another name")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise FileError(
            f"output: {out} must be empty or new, it holds {_listing(out)}; choose another --out or add --overwrite"
        )
    if not (out / "run.json").is_file():
        raise FileError(f"output: {out} was not written by this program (it has no run.json); choose another --out")
    inside = [path for path in inputs if out in path.resolve().parents]
    if inside:
        raise FileError(
            f"output: {out} holds the input {inside[0].name} and cannot be overwritten; choose another --out"
        )


@contextmanager
def output_folder(out: Path, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends well, and vanishes when it does not.

    Files in a replaced folder that no run writes are moved over.
    """
    out = out.resolve()
    check_output(out, overwrite, inputs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise FileError(f"output: {out} cannot be created ({error.strerror}); choose another --out") from error
    try:
        yield work
        work.chmod(0o755)
        _replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def write_groups(path: Path, names: Sequence[str], known: Mapping[str, str] | None = None) -> None:
    """``index.csv``: a row per recording with its group, for ``compare``; groups already known are kept."""
    groups = [(known or {}).get(name, "default") for name in names]
    pd.DataFrame({"name": list(names), "group": groups}).to_csv(path, index=False)


def read_groups(path: Path) -> dict[str, str]:
    """Recording -> group, from a CSV with the columns ``name`` and ``group``."""
    table = _read_csv(path, "a CSV with the columns name and group")
    if not {"name", "group"} <= set(table.columns):
        raise FileError(
            f"groups: {path} must have the columns name and group, got {', '.join(map(str, table.columns))}; add them"
        )
    rows = table[["name", "group"]].map(lambda text: str(text).strip() if pd.notna(text) else "")
    if (rows == "").any(axis=None):
        line = int(np.flatnonzero((rows == "").any(axis=1))[0]) + 2
        raise FileError(f"groups: every row of {path} must have a name and a group, line {line} has not; fill it in")
    if rows["name"].duplicated().any():
        twice = rows.loc[rows["name"].duplicated(), "name"].iloc[0]
        raise FileError(f"groups: {path} must name each recording once, got {twice!r} twice; remove one")
    return dict(zip(rows["name"], rows["group"], strict=True))


def safe_names(names: Sequence[str]) -> list[str]:
    """Names that every file system takes, still one for each: other characters become ``_``.

    Raises
    ------
    DataError
        Two recordings have the same name (upper and lower case are the same on some systems).
    """
    safe = [re.sub(r"[^\w.()+=,@ -]", "_", name).strip(" .") or "recording" for name in names]
    seen: dict[str, str] = {}
    for name, key in zip(safe, (name.casefold() for name in safe), strict=True):
        if key in seen:
            raise DataError(f"recordings: each must have its own name, got {name!r} twice; rename one of the files")
        seen[key] = name
    return safe


def _replace(work: Path, out: Path) -> None:
    """Put ``work`` in the place of ``out``; the old folder is set aside first and comes back if that fails."""
    if not out.exists():
        os.replace(work, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / "old"
    os.replace(out, aside)
    try:
        os.replace(work, out)
    except OSError:
        os.replace(aside, out)
        raise
    for path in aside.iterdir():
        if path.name not in OURS and not (out / path.name).exists():
            shutil.move(path, out / path.name)
    shutil.rmtree(aside.parent, ignore_errors=True)


def _read_syllables(path: Path) -> np.ndarray:
    table = _read_csv(path, "a table that fit or apply wrote")
    if "syllable" not in table.columns:
        raise FileError(f"results: {path} must have the column syllable, got {', '.join(map(str, table.columns))}")
    if not pd.api.types.is_integer_dtype(table["syllable"]):
        raise FileError(f"results: the column syllable of {path} must hold whole numbers; run fit or apply again")
    return table["syllable"].to_numpy(int)


def _read_csv(path: Path, wanted: str) -> pd.DataFrame:
    if not path.is_file():
        raise FileError(f"file: {path} must be {wanted}, there is no such file; check the path")
    try:
        return pd.read_csv(path)
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FileError(f"file: {path} must be {wanted}, it cannot be read as one ({error})") from error


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
