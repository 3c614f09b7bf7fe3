"""Limits on the size of a file, above which it is refused."""

from pathlib import Path

from ppgen.errors import FileError

__all__ = ["MEMORY_LIMIT", "refuse_bomb"]

MEMORY_LIMIT = 4 * 2**30  # most bytes that one array of a file may fill

SMALL = 64 * 2**20
RATIO = 200


def refuse_bomb(path: Path, what: str, declared: int, stored: int) -> None:
    """Refuse an array of ``declared`` bytes that the file stores in ``stored`` bytes, when that cannot be poses.

    Raises
    ------
    FileError : more than `MEMORY_LIMIT`, or over 64 MiB blown up more than 200-fold: tracks do not compress like that.
    """
    if declared > MEMORY_LIMIT:
        raise FileError(
            f"{path}: {what} must fit into {MEMORY_LIMIT / 2**30:g} GiB, it declares {declared / 2**30:.3g} GiB; "
            "split the recording or export fewer frames"
        )
    if declared > SMALL and declared > RATIO * max(stored, 1):
        raise FileError(
            f"{path}: {what} must hold poses, but {stored} stored bytes declare {declared / 2**20:.0f} MiB "
            "(a decompression bomb or an empty array); export the file again"
        )
