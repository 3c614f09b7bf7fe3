"""A count of the weighted proposals of each row that tell: where few do, its answers are rough, and the log says so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["noted", "watched"]

FEWEST = 5.0  # effective proposals of a row, below which the logarithm of their mean is off by half a nat or so

log = logging.getLogger("ppgen")


@final
class Watch:
    """Effective numbers of proposals of each row, over all draws of the parameters at which they were weighed."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.draws, self.proposals = 0, 0

    def add(self, effective: Float[Tensor, "S N"], proposals: int) -> None:
        """Add those at some more draws."""
        here = effective.sum(0)
        self.total = here if self.total is None or self.total.shape != here.shape else self.total + here
        self.draws, self.proposals = self.draws + len(effective), max(self.proposals, proposals)

    def words(self) -> str:
        """Say how many rows have few; empty if none has."""
        few = 0 if self.total is None else int((~(self.total / self.draws >= min(FEWEST, self.proposals))).sum())
        if self.total is None or not few:
            return ""
        return (
            f"of {few} of {len(self.total)} rows fewer than {FEWEST:g} of the {self.proposals:,} values count that "
            "were proposed for its own latents, so that answers about them are rough; train the guide for longer, or "
            'with bound="iwae", or see whether these rows are unlike those of the fit'
        )


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(who: str) -> Iterator[None]:
    """Say once, after the block, of how many rows few proposals counted in it."""
    watch = Watch()
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
    if words := watch.words():
        log.warning("%s: %s", who, words)


def noted(log_weight: Float[Tensor, "n N"]) -> None:
    """Let the block that is watched know of weights."""
    watch = _watch.get()
    if watch is None:
        return
    effective = (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp().detach()
    watch.add(_of_all_draws(effective), len(log_weight))


def _of_all_draws(value: Float[Tensor, " N"]) -> Float[Tensor, "S N"]:
    """A value with that of every draw that the program is mapped over: nothing of an answer depends on it."""
    functorch = torch._C._functorch
    if not functorch.is_batchedtensor(value):
        return value[None]
    return functorch.get_unwrapped(value).movedim(functorch.maybe_get_bdim(value), 0)
