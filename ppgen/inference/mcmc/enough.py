"""When a chain sampler has drawn enough: the least effective size of every number, looked at from time to time.

The size is what the checks of a fit look at: of the bulk, the tails and the mean of every entry of every site in its
own units, and of the log density; labels and turns that a model calls arbitrary are aligned first. The looks come at
counts of draws that follow from the sizes, never from the clock, so the same run stops at the same draw again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ppgen.diagnostics.convergence import convergence
from ppgen.model import Model
from ppgen.programs.density import Density
from ppgen.results.labels import alike
from ppgen.results.posterior import Draws

__all__ = ["EXTRA", "FIRST_LOOK", "WANTED", "Enough", "Stop", "least_size"]

WANTED = 1000.0  # least effective size of a run that names no number of draws; `diagnose` wants 400
FIRST_LOOK = 100  # draws of a chain before the first look
BETWEEN_LOOKS = 25  # draws between two looks
EXTRA = 1.1  # effective sizes of few draws are noisy: so much more is aimed at


@final
@dataclass
class Stop:
    """Draws of a chain that are ``expected``, the draw of the ``next`` look, and the result of the last one."""

    expected: int
    next: int = 0
    size: float = math.nan
    reached: int = 0


@final
@dataclass(frozen=True)
class Enough:
    """The ``wanted`` effective size of draws of ``model``'s sites."""

    model: Model
    density: Density
    wanted: float

    def first(self, draws: int) -> Stop:
        """Before the first look, of a run of at most so many draws."""
        return Stop(min(FIRST_LOOK, draws), min(FIRST_LOOK, draws))

    def look(self, v: Float[Tensor, "S C P"], stats: Mapping[str, Tensor], before: Stop) -> Stop:
        """Look whether the draws so far are enough, and if not, decide when to look again."""
        size = self.size(v, stats)
        if size >= self.wanted:
            return replace(before, size=size, reached=1)
        count = len(v)
        needed = math.ceil(EXTRA * count * self.wanted / size) if size > 0 else 1 << 30
        return Stop(needed, min(max(needed, count + BETWEEN_LOOKS), 2 * count), size)

    def size(self, v: Float[Tensor, "S C P"], stats: Mapping[str, Tensor]) -> float:
        """Least effective size of any number that moves; NaN where a draw is not finite."""
        sites = self.density.constrain(v.to(self.density.device))
        draws = Draws({name: value.movedim(0, 1).cpu() for name, value in sites.items()}, dict(stats))
        return least_size(self.model, draws)


def least_size(model: Model, posterior: Draws) -> float:
    """Least effective size of any number that moves, labels aligned; NaN where a draw is not finite."""
    draws = alike(model, posterior)
    sizes = [_least(value.numpy()) for value in (*draws.sites.values(), posterior.stats["lp"])]
    return float(np.min(sizes)) if sizes else math.nan


def _least(value: Float[np.ndarray, "C S *event"]) -> float:
    """Least effective size of a site's entries; infinite where none moves by construction."""
    flat = np.moveaxis(value.reshape(*value.shape[:2], -1), -1, 0)
    moving = flat[np.ptp(flat, axis=(1, 2)) != 0]
    if not len(moving):
        return math.inf
    known = convergence(moving, 1e-3)
    return float(np.min([known.bulk, known.tail, known.mean]))
