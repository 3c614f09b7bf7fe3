"""States of a hidden Markov model whose emission has frames with no closed form: summed out along paths of states.

Frames far from a gap are exact, and so is everything while a gap is so short that all paths through it are followed;
otherwise the answer is that of many weighted paths (:mod:`ppgen.messages.switching.filter`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.collapsed.paths import Paths
from ppgen.emissions.emission import Emission
from ppgen.families.family import Natural
from ppgen.messages import discrete_chain
from ppgen.messages.switching.filter import Switching

__all__ = ["AcrossGaps", "GapLatents"]

UNLIKELY = 1e6  # nats that keep the most probable path to the states it must go through


@final
@dataclass(frozen=True)
class AcrossGaps:
    """A batch of sequences with gaps, the emission and its natural statistics, and paths of the states."""

    x: Float[Tensor, "N T F"]
    emission: Emission
    statistics: Natural
    paths: Paths
    constant: Float[Tensor, " N"]

    @property
    def switching(self) -> Switching:
        """The states and frames."""
        return self.paths.switching

    def log_evidence(self) -> Float[Tensor, " N"]:
        """An estimate of log p(x); its exponential is unbiased."""
        return torch.where(self.switching.lengths > 0, self.paths.log_evidence() + self.constant, 0.0)

    def path(self) -> Int[Tensor, "N T"]:
        """One draw of the states."""
        return self.paths.path()

    def latents(self) -> "GapLatents":
        """Posterior of the states and frames; the same bits at every call."""
        return GapLatents(self, *self.paths.smoothed())


@final
@dataclass(frozen=True)
class GapLatents:
    """Posterior of the states and of the latent frames of sequences with gaps."""

    posterior: AcrossGaps
    probabilities: Float[Tensor, "N T K"]
    paths: Int[Tensor, "n N T"]

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "z": ("sequence", "time", "state"),
        "z_mode": ("sequence", "time"),
        "z_draw": ("sequence", "time"),
        "h": ("sequence", "time", "component"),
    }

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``z``: probability of each state at each step; ``h``: mean of the latent frames; NaN past the end."""
        found = {"z": self.probabilities, "h": self._frames()}
        return {name: torch.where(self._exists[..., None], value, torch.nan) for name, value in found.items()}

    @property
    def mode(self) -> dict[str, Tensor]:
        """``z_mode``: across gaps the most probable state of each step, and elsewhere the most probable path given
        those; -1 past the end of a sequence.
        """
        paths, switching = self.posterior.paths, self.posterior.switching
        best = torch.nn.functional.one_hot(self.probabilities.argmax(-1), self.probabilities.shape[-1])
        potential = torch.where(switching.touched[..., None], UNLIKELY * (best - 1.0), switching.potential)
        chain = discrete_chain(paths.log_initial, paths.log_transition, potential, switching.lengths)
        return {"z_mode": self._end(chain.mode())}

    def sample(self) -> dict[str, Tensor]:
        """``z_draw``: one draw of the whole path; -1 past the end of a sequence."""
        return {"z_draw": self._end(self.posterior.path())}

    def _frames(self) -> Float[Tensor, "N T D"]:
        """Mean of the frames given a path, averaged over paths."""
        given, K = self.posterior, self.probabilities.shape[-1]
        frames = given.emission.frames(given.x)
        if frames is None or frames.latent is None:
            return given.switching.value
        total = torch.zeros_like(frames.value)
        for path in self.paths:
            weights = torch.nn.functional.one_hot(path, K).to(total)
            total += frames.latent.mean(given.emission.given(frames.latent, given.statistics, weights))
        return torch.where(given.switching.known, given.switching.value, total / len(self.paths))

    def _end(self, path: Tensor) -> Tensor:
        return torch.where(self._exists, path, -1)

    @property
    def _exists(self) -> Bool[Tensor, "N T"]:
        switching = self.posterior.switching
        return torch.arange(switching.potential.shape[1]) < switching.lengths[:, None]
