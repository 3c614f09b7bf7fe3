"""Text tables from strangers: find the delimiter, the header and the numbers, or say the line that is wrong."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.limits import MEMORY_LIMIT

__all__ = ["Table", "open_table"]

HEADER_ROWS = 5
HEADER_LIMIT = 2**22


@dataclass(frozen=True)
class Table:
    """A text file: its first rows as cells, and all its lines."""

    path: Path
    delimiter: str
    head: list[list[str]]
    lines: list[str]

    def numbers(self, header: int, columns: list[str]) -> np.ndarray:
        """The rows below ``header`` as (rows, columns) float64; an empty cell is NaN.

        Raises
        ------
        FileError : no rows, a row of another width, or a cell that is not a number (said with its line and column).
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
        try:
            return np.loadtxt(map(self._filled, body), delimiter=self.delimiter, comments=None, ndmin=2)
        except ValueError:
            return self._cell_by_cell(body, header, columns)

    def _filled(self, line: str) -> str:
        """Write nan into empty cells."""
        two = self.delimiter * 2
        between = f"{self.delimiter}nan{self.delimiter}"
        line = line.replace(two, between).replace(two, between)
        return (
            ("nan" if line.startswith(self.delimiter) else "") + line + ("nan" if line.endswith(self.delimiter) else "")
        )

    def _cell_by_cell(self, body: list[str], header: int, columns: list[str]) -> np.ndarray:
        values = np.empty((len(body), len(columns)))
        for i, line in enumerate(body):
            for j, cell in enumerate(line.split(self.delimiter)):
                try:
                    values[i, j] = _number(cell.strip())
                except ValueError as error:
                    raise FileError(
                        f"{self.path}: line {header + i + 1}, column {columns[j]!r} must be a number or empty, "
                        f"got {cell[:40]!r}; {_advice(cell, j)}"
                    ) from error
        return values


def open_table(path: Path) -> Table:
    """Read a UTF-8 text file whose cells are split by comma, semicolon or tab.

    Raises
    ------
    FileError : it is not text, not UTF-8, or its header is absurdly long.
    """
    if path.stat().st_size > MEMORY_LIMIT:
        raise FileError(f"{path}: must be smaller than {MEMORY_LIMIT / 2**30:g} GiB; split the recording")
    text = _decode(path)
    lines = [line for line in text.splitlines() if line.strip()]
    head = lines[:HEADER_ROWS]
    if any(len(line) > HEADER_LIMIT for line in head):
        raise FileError(f"{path}: must have a header, its first lines are longer than {HEADER_LIMIT} characters")
    delimiter = max(",;\t", key=lambda d: head[0].count(d)) if head else ","
    csv.field_size_limit(max(csv.field_size_limit(), HEADER_LIMIT))
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


def _number(cell: str) -> float:
    if cell.lower() in ("", "na", "n/a", "null", "none"):
        return np.nan
    if "_" in cell:  # Python reads 1_000 as a number
        raise ValueError(cell)
    return float(cell)


def _advice(cell: str, column: int) -> str:
    if column == 0:
        return "labelled images are not a recording"
    return "write a decimal point" if cell.count(",") == 1 else "correct the cell"
