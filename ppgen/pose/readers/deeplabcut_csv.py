"""DeepLabCut csv (3 header rows, or 4 with individuals) and LightningPose csv, which has the same shape."""

from ppgen.errors import FileError
from ppgen.pose.readers.deeplabcut import tracks_from_columns
from ppgen.pose.readers.table import Table
from ppgen.pose.recording import Track

__all__ = ["is_deeplabcut", "is_lightning_pose", "read"]

HEADERS = (["scorer", "bodyparts", "coords"], ["scorer", "individuals", "bodyparts", "coords"])
LIGHTNING = ("heatmap", "lightning", "ensemble-kalman", "eks")


def is_lightning_pose(table: Table) -> bool:
    """Tell whether the scorer is one that LightningPose writes."""
    scorers = {cell.lower() for cell in table.head[0][1:]}
    return _first_cells(table)[0] == "scorer" and any(s.startswith(LIGHTNING) for s in scorers)


def is_deeplabcut(table: Table) -> bool:
    """Tell whether the first column holds at least one of DeepLabCut's header words (`read` reports a wrong depth)."""
    return bool({"scorer", "bodyparts", "individuals", "coords"} & set(_first_cells(table)))


def read(table: Table) -> list[Track]:
    """One track per individual.

    Raises
    ------
    FileError : the header does not have the right rows, or a column or cell is wrong.
    """
    first = _first_cells(table)
    depth = next((len(h) for h in HEADERS if first[: len(h)] == h), None)
    if depth is None:
        raise FileError(
            f"{table.path}: must begin with 3 header rows (scorer, bodyparts, coords) or 4 (scorer, individuals, "
            f"bodyparts, coords), its first column reads {first}; export it again from the tracker"
        )
    header = table.head[:depth]
    widths = {len(row) for row in header}
    if len(widths) > 1:
        raise FileError(f"{table.path}: header rows must be equally long, got {sorted(widths)} cells; export it again")
    columns = list(zip(*[row[1:] for row in header], strict=True))
    names = ["frame number", *(" ".join(c[1:]) for c in columns)]
    values = table.numbers(depth, names)
    return tracks_from_columns(columns, values[:, 1:], values[:, 0], table.path)


def _first_cells(table: Table) -> list[str]:
    return [row[0].lower() for row in table.head if row]
