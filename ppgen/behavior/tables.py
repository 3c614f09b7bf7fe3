"""A person's own table: a file of comma-separated values, of bounded size."""

from pathlib import Path

import pandas as pd

from ppgen.errors import FileError

__all__ = ["csv_table"]

LARGEST = 200_000_000  # bytes of a file, unless a tool says otherwise


def csv_table(who: str, path: Path, most: int = LARGEST) -> pd.DataFrame:
    """The table in a file of comma-separated values; ``who`` asks for it, of at most ``most`` bytes.

    Raises
    ------
    FileError : no such file, one too large, or no table; said in words.
    """
    if not path.is_file():
        raise FileError(f"{who}: {path} must be a file, got none; give a CSV file")
    if (size := path.stat().st_size) > most:
        raise FileError(f"{who}: {path} must have at most {most:,} bytes, got {size:,}; cut it")
    try:
        return pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise FileError(f"{who}: {path.name} must be a table of comma-separated values, got {error}") from error
