"""Permission to estimate a log-density that has no closed form, and a note that it was used.

Samplers and optimisers need a function with a gradient that is the same at every call, so a distribution gives them a
lower bound. An answer about the data wants p(x | theta) itself: inside `estimates`, it gets an unbiased estimate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Said", "estimates", "wanted"]


@dataclass
class Said:
    """``words``: how the log-densities inside the block came about, empty where they are exact."""

    words: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """The words as an attribute of labelled arrays."""
        return {"log_likelihood": self.words} if self.words else {}


_said: ContextVar[Said | None] = ContextVar("estimates", default=None)


@contextmanager
def estimates() -> Iterator[Said]:
    """Let distributions without a closed form estimate their log-density inside the block, and say so."""
    said = Said()
    token = _said.set(said)
    try:
        yield said
    finally:
        _said.reset(token)


def wanted() -> Said | None:
    """The list that takes a note of each estimated log-density; None where none may be estimated."""
    return _said.get()
