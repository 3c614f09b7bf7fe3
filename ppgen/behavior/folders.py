"""Folders of results: they appear whole or not at all, and never in the place of what somebody else wrote."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ppgen.errors import FileError

__all__ = ["check_output", "output_folder"]

# What a run may have left in its folder; everything else there is the user's and survives ``--overwrite``.
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
    "trials.csv",
    "weights.csv",
    "models.csv",
    "scores.csv",
    "filled.csv",
    "intervals.csv",
    "outliers.csv",
    "next.csv",
    "forecast.csv",
    "regimes.csv",
    "run.json",
    "input",
}
Found = tuple[int, int] | None
"""Which run's results a folder holds: number and time of its ``run.json``; None where there are none."""


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

    Files in a replaced folder that no run writes are moved over. What came into ``out`` during the block stays there:
    the results are then kept beside it, under another name.

    Raises
    ------
    FileError : the folder cannot be written, or was taken by something else meanwhile; the message says where the
        results are.
    """
    out = out.resolve()
    check_output(out, overwrite, inputs)
    before = _found(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise FileError(f"output: {out} cannot be created ({error.strerror}); choose another --out") from error
    try:
        yield work
        work.chmod(0o755)
        if not (_replace(work, out, before) if before else _place(work, out)):
            kept = _keep(work, out)
            raise FileError(
                f"output: {out} was changed by another program during this run and is left as it is; "
                f"the results of this run are in {kept}"
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _found(folder: Path) -> Found:
    try:
        status = (folder / "run.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _place(work: Path, out: Path) -> bool:
    """Give ``work`` the name ``out``, unless that holds something; renaming takes the name of an empty folder only."""
    try:
        if out.is_dir():
            out.rmdir()  # systems differ in whether a rename may do this
        os.rename(work, out)
    except OSError:
        if out.exists():
            return False
        raise
    return True


def _keep(work: Path, out: Path) -> Path:
    """Give ``work`` the first free name like ``out``."""
    names = (out.with_name(f"{out.name}-{number}") for number in count(2))
    return next(kept for kept in names if _place(work, kept))


def _replace(work: Path, out: Path, before: Found) -> bool:
    """Put ``work`` in the place of ``out``, whose run is ``before``; False, and nothing changed, where it no longer is.

    The old folder is set aside first, looked at where nobody else finds it, and comes back if anything fails.
    """
    if not out.exists():
        return _place(work, out)
    holder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    aside = holder / "old"
    try:
        os.rename(out, aside)
        if _found(aside) != before or not _place(work, out):
            _place(aside, out)
            return False
    except OSError:
        if aside.exists():
            _place(aside, out)
        raise
    finally:
        if not aside.exists():
            holder.rmdir()
    for path in aside.iterdir():
        if path.name not in OURS and not (out / path.name).exists():
            shutil.move(path, out / path.name)
    shutil.rmtree(holder, ignore_errors=True)
    return True


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
