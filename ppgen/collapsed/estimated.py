"""Permission to estimate a log-density that has no closed form, and a note that it was used.

Samplers and optimisers need a function with a gradient that is the same at every call, so a distribution gives them a
lower bound. An answer about the data wants p(x | theta) itself: inside `estimates`, it gets an unbiased estimate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Note", "estimates", "wanted"]


@dataclass
class Note:
    """A note on the log-densities inside the block: ``words`` say how they were estimated, empty if they are exact."""

    words: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """The words as an attribute of labelled arrays."""
        return {"log_likelihood": self.words} if self.words else {}


_note: ContextVar[Note | None] = ContextVar("estimates", default=None)


@contextmanager
def estimates() -> Iterator[Note]:
    """Let distributions without a closed form estimate their log-density inside the block, and say so."""
    note = Note()
    token = _note.set(note)
    try:
        yield note
    finally:
        _note.reset(token)


def wanted() -> Note | None:
    """The note to write into where a log-density is estimated; None where it must not be."""
    return _note.get()
