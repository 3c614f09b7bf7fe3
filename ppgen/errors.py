"""Errors that ppgen raises. A message says *who: what must be, what came; what to do*."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["DataError", "FileError", "FitError", "PpgenError", "in_name_of"]


class PpgenError(Exception):
    """Any error that ppgen raises on purpose."""


class DataError(PpgenError, ValueError):
    """An array or an argument that a model cannot take."""


class FileError(PpgenError, ValueError):
    """A file or folder that cannot be read, trusted or written."""


class FitError(PpgenError, RuntimeError):
    """A fit that cannot go on."""


@contextmanager
def in_name_of(who: str) -> Iterator[None]:
    """Let a `DataError` of a part say whose part it is: "Gaussian: ..." of a GMM becomes "GMM, Gaussian: ..."."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{who}, {error}") from error
