"""Answers about discrete states from many weighted paths, along each of which continuous frames are summed out."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.messages.switching.filter import States, Switching

__all__ = ["Paths"]

DRAWING = 250  # particles at most where one path is drawn, and fresh ones for every draw
RUNS, FEWEST = 8, 50  # runs over which the posterior is averaged, of a quarter of the particles, or at least so many
BUDGET, LEAST = 1 << 29, 16  # multiplications that an answer may cost, some three seconds; particles at least
PATHS = 2  # from each of them, for the mean of the latent frames


@final
@dataclass(frozen=True)
class Paths:
    """States and frames, the log-weights of the first state and of transitions, and the ``most`` particles."""

    switching: Switching
    log_initial: Float[Tensor, " K"]
    log_transition: Float[Tensor, "K K"]
    most: int = 1 << 30

    def log_evidence(self) -> Float[Tensor, " N"]:
        """An estimate of the log evidence of the frames; its exponential is unbiased."""
        return self._states(0, torch.rand(self._steps, dtype=torch.float64), particles=self._particles).log_evidence

    def path(self) -> Int[Tensor, "N T"]:
        """One draw of the states, from particles of its own."""
        particles = min(DRAWING, self._particles)
        return self._states(1, torch.rand(self._steps, dtype=torch.float64), particles=particles).paths[0]

    def smoothed(self) -> tuple[Float[Tensor, "N T K"], Int[Tensor, "n N T"]]:
        """Probabilities of the states, and some drawn paths; the same bits at every call.

        The plain average of runs: where a gap is long, particles of one run are too alike, and runs differ. Models of
        many states and recordings with many gaps get fewer particles and runs, as `BUDGET` allows.
        """
        generator = torch.Generator().manual_seed(0)
        affordable = BUDGET // max(1, self.switching.cost)
        particles = min(max(FEWEST, self._particles // 4), max(LEAST, affordable // RUNS))
        runs = min(RUNS, max(1, affordable // particles))
        thinning = torch.rand(runs, self._steps, dtype=torch.float64, generator=generator)
        found = [self._states(PATHS, each, generator, particles) for each in thinning]
        return torch.stack([run.marginals for run in found]).mean(0), torch.cat([run.paths for run in found])

    @property
    def _particles(self) -> int:
        return min(self.most, self.switching.particles)

    @property
    def _steps(self) -> int:
        return self.switching.potential.shape[1]

    def _states(
        self,
        draws: int,
        thinning: Float[Tensor, " T"],
        generator: torch.Generator | None = None,
        particles: int | None = None,
    ) -> States:
        shape = (draws, len(self.switching.lengths), self._steps)
        uniforms = torch.rand(shape, dtype=torch.float64, generator=generator)
        return self.switching.states(
            self.log_initial, self.log_transition, thinning=thinning, uniforms=uniforms, particles=particles
        )
