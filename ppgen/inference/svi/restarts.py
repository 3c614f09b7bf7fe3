"""Climbs from several starts, of which the best is kept: the first near the middle, the others drawn from the prior."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from ppgen.errors import DataError
from ppgen.inference.svi.climbing import Climb
from ppgen.inference.svi.guides import FlatGuide
from ppgen.programs.parameters import Parameters
from ppgen.programs.sites import Last
from ppgen.rng import seed_device

__all__ = ["Restarts"]

TRIES = 20  # draws of the prior, until one has a finite density


@final
@dataclass(frozen=True, eq=False)
class _End:
    """The end of a climb: parameters, frame, and what the climb says of itself."""

    climb: Climb
    flat: tuple[Tensor, ...]
    frame: dict[str, Tensor]


@final
class Restarts:
    """Climbs in turn; it answers like one :class:`~ppgen.inference.svi.climbing.Climb`.

    Parameters
    ----------
    first : the first climb; parameters and guide are where it begins.
    begin : a climb with a seed, from where parameters and guide are.
    prior : the program, run with its arguments, that is drawn from.
    count : number of starts.
    """

    def __init__(
        self,
        first: Climb,
        begin: Callable[[int], Climb],
        prior: Callable[[], Any],
        parameters: Parameters,
        guide: FlatGuide,
        count: int,
    ) -> None:
        self.begin, self.prior, self.parameters, self.guide, self.count = begin, prior, parameters, guide, count
        self.start = _place(parameters, guide)
        self.ended: list[_End] = []
        self.path: Path | None = None
        self.climb = first

    @property
    def bound(self) -> Any:  # noqa: ANN401 (of any climb)
        """The bound of the climb under way."""
        return self.climb.bound

    @property
    def seed(self) -> int:
        """The seed of all climbs."""
        return self.climb.seed

    @property
    def max_steps(self) -> int:
        """Steps that all climbs may take together."""
        return self.climb.max_steps * self.count

    @property
    def steps(self) -> int:
        """Steps made by all climbs."""
        return sum(end.climb.steps for end in self.ended) + self.climb.steps

    @property
    def over(self) -> bool:
        """True if every climb has ended."""
        return len(self.ended) == self.count - 1 and self.climb.over

    @property
    def elbo(self) -> float:
        """The newest bound."""
        return self.climb.elbo

    def step(self) -> None:
        """One step of the climb under way, or of the next where it has ended."""
        while self.climb.over and not self.over:
            self._next()
        if not self.climb.over:
            self.climb.step()

    def finish(self) -> None:
        """Give the parameters the values of the best climb."""
        self._end()
        best = self._best()
        _restore(self.parameters, self.guide, best.flat, best.frame)
        best.climb.warn()

    def history(self) -> pd.DataFrame:
        """The histories of all climbs, numbered by ``init``; ``kept`` is the best."""
        best = self._best()
        parts = [end.climb.history().assign(init=i, kept=end is best) for i, end in enumerate(self.ended)]
        return pd.concat(parts, ignore_index=True)

    def words(self) -> dict[str, Any]:
        """Attributes of a fit that say what was done."""
        return {**self._best().climb.words(), "restart_elbos": [end.climb.elbo for end in self.ended]}

    def save(self, path: Path | None) -> None:
        """Write a checkpoint of the climb under way, each to a file of its own."""
        self.climb.save(_numbered(path, len(self.ended)))

    def resume(self, path: Path | None) -> None:
        """Go on from checkpoints, if there are any; see `Climb.resume`."""
        self.path = path
        self.climb.resume(_numbered(path, len(self.ended)))

    def _next(self) -> None:
        self.save(self.path)
        self._end()
        self.climb = self._from_prior()
        self.resume(self.path)

    def _end(self) -> None:
        self.climb.put()
        self.ended.append(_End(self.climb, *_place(self.parameters, self.guide)))

    def _from_prior(self) -> Climb:
        """A climb from a draw of the prior at which the bound is finite."""
        stream = np.random.SeedSequence([self.seed, len(self.ended)]).generate_state(1, np.uint64)[0]
        seed_device(int(stream >> 2), self.guide.centre.device)
        for _ in range(TRIES):
            _restore(self.parameters, self.guide, *self.start)
            self.guide.put(self._draw())
            climb = self.begin(self.seed)
            if climb.is_finite:
                break
        climb.check()
        return climb

    def _draw(self) -> dict[str, Tensor]:
        last = Last()
        try:
            with torch.no_grad(), last:
                sites: dict[str, Any] = dict(poutine.trace(self.prior).get_trace().nodes)
        except NotImplementedError as error:
            raise DataError(
                f"svi: n_init starts from the prior, but that of site {last.name!r} cannot be drawn from; write a "
                "proper prior, or use n_init=1"
            ) from error
        return {name: sites[name]["value"] for name in self.guide.sites}

    def _best(self) -> _End:
        return max(self.ended, key=lambda end: (end.climb.whole, end.climb.elbo))


def _place(parameters: Parameters, guide: FlatGuide) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Copies of the parameters, and of the guide's frame."""
    return parameters.flat(), {name: value.clone() for name, value in guide.named_buffers()}


def _restore(parameters: Parameters, guide: FlatGuide, flat: tuple[Tensor, ...], frame: dict[str, Tensor]) -> None:
    parameters.store(flat)
    for name, value in guide.named_buffers():
        value.copy_(frame[name])


def _numbered(path: Path | None, number: int) -> Path | None:
    return path if path is None or not number else path.with_stem(f"{path.stem}-{number}")
