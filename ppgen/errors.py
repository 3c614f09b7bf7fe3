"""Errors that ppgen raises. A message says *who: what must be, what came; what to do*."""

__all__ = ["DataError", "FileError", "FitError", "PpgenError"]


class PpgenError(Exception):
    """Any error that ppgen raises on purpose."""


class DataError(PpgenError, ValueError):
    """An array or an argument that a model cannot take."""


class FileError(PpgenError, ValueError):
    """A file or folder that cannot be read, trusted or written."""


class FitError(PpgenError, RuntimeError):
    """A fit that cannot go on."""
