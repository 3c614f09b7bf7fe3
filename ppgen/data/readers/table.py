"""Text tables from strangers: find the delimiter, the header and the numbers, or say the line that is wrong."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ppgen.data.readers.limits import MEMORY_LIMIT
from ppgen.errors import FileError

__all__ = ["Table", "open_table"]

_HEADER_ROWS = 5
_HEADER_LIMIT = 2**22


@dataclass(frozen=True)
class Table:
    """A text file: its first rows as cells, and all its lines."""

    path: Path
    delimiter: str
    head: list[list[str]]
    lines: list[str]

    def numbers(self, header: int, columns: list[str]) -> np.ndarray:
        """Return the rows below ``header`` as (rows, columns) float64; an empty cell is NaN.

        Raises
        ------
        FileError
            No rows, a row of another width, or a cell that is not a number (said with its line and column).
        """
        body = self.lines[header:]
        if not body:
            raise FileError(f"{self.path}: must hold frames below its header, it has the header only; export it again")
        for i, line in enumerate(body):
            if line.count(self.delimiter) != len(columns) - 1:
                raise FileError(
                    f"{self.path}: line {header + i + 1} must have {len(columns)} cells like the header, got "
                    f"{line.count(self.delimiter) + 1}; the file was cut short or edited, export it again"
                )
        text = io.StringIO("\n".join(body))
        try:
            frame = pd.read_csv(
                text, sep=self.delimiter, header=None, dtype=np.float64, float_precision="round_trip", quoting=3
            )
        except (ValueError, OverflowError) as error:
            raise self._first_text(body, header, columns) from error
        return frame.to_numpy(np.float64)

    def _first_text(self, body: list[str], header: int, columns: list[str]) -> FileError:
        for i, line in enumerate(body):
            for column, cell in zip(columns, line.split(self.delimiter), strict=True):
                if not _is_number(cell):
                    hint = "labelled images are not a recording" if column == columns[0] else "write a decimal point"
                    return FileError(
                        f"{self.path}: line {header + i + 1}, column {column!r} must be a number or empty, "
                        f"got {cell[:40]!r}; {hint if _looks_decimal(cell) or column == columns[0] else 'correct the cell'}"
                    )
        return FileError(f"{self.path}: must hold numbers below its header; export it again")


def open_table(path: Path) -> Table:
    """Read a UTF-8 text file whose cells are split by comma, semicolon or tab.

    Raises
    ------
    FileError
        It is not text, not UTF-8, or its header is absurdly long.
    """
    if path.stat().st_size > MEMORY_LIMIT:
        raise FileError(f"{path}: must be smaller than {MEMORY_LIMIT / 2**30:g} GiB; split the recording")
    text = _decode(path)
    lines = [line for line in text.splitlines() if line.strip()]
    head = lines[:_HEADER_ROWS]
    if any(len(line) > _HEADER_LIMIT for line in head):
        raise FileError(f"{path}: must have a header, its first lines are longer than {_HEADER_LIMIT} characters")
    delimiter = max(",;\t", key=lambda d: head[0].count(d)) if head else ","
    csv.field_size_limit(max(csv.field_size_limit(), _HEADER_LIMIT))
    rows = [[cell.strip() for cell in row] for row in csv.reader(head, delimiter=delimiter)]
    return Table(path, delimiter, rows, lines)


def _decode(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileError(f"{path}: must be UTF-8 text, it is UTF-16; save it as 'CSV UTF-8'")
    if b"\0" in data[:65536]:
        raise FileError(f"{path}: must be text, it is binary; a wrong file name, or give format=...")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: must be UTF-8 text, byte {error.start} is not; it is binary, or save it as 'CSV UTF-8'"
        ) from error


def _is_number(cell: str) -> bool:
    cell = cell.strip()
    if cell.lower() in ("", "nan", "na", "n/a", "null", "none"):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _looks_decimal(cell: str) -> bool:
    return cell.count(",") == 1 and _is_number(cell.replace(",", "."))
