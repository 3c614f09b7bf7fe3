r"""Hidden semi-Markov model as one distribution over whole sequences, its states and durations summed out.

.. math:: z_1 \sim \mathrm{Cat}(\pi), \quad d_1 \sim p(d \mid z_1), \qquad
    z_{i+1} \sim \mathrm{Cat}(J_{z_i}), \quad d_{i+1} \sim p(d \mid z_{i+1}), \qquad x_t \sim p(x \mid z \text{ at } t)

Segment i has the state :math:`z_i` for :math:`d_i` steps, and J never repeats a state. It is a hidden Markov model on
(state, phase) (:mod:`ppgen.durations`), so its density is exact wherever that of the emission is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot

from ppgen.collapsed.base import Collapsed, Latents, Local, unexpanded
from ppgen.collapsed.block import Block
from ppgen.collapsed.hidden_markov import HiddenMarkov
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.durations.durations import Durations, Statistics
from ppgen.emissions.emission import Emission
from ppgen.emissions.tied import Tied
from ppgen.families.family import Natural
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain

__all__ = ["SemiMarkov"]

UNLIKELY = 1e6  # nats that keep paths to the states they must go through


@final
@dataclass(frozen=True)
class SegmentLatents:
    """Posterior of the states of a batch of sequences, their phases summed out."""

    inner: Latents
    owner: Int[Tensor, " S"]

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self.inner.dims

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``z``: probability of each state at each step; ``h``: mean of the latent frames, where there are any."""
        found = self.inner.marginals
        return found | {"z": found["z"] @ one_hot(self.owner).to(found["z"])}

    @property
    def mode(self) -> dict[str, Tensor]:
        """``z_mode``: states of the most probable path of states and phases; -1 past the end of a sequence."""
        return {"z_mode": self._owned(self.inner.mode["z_mode"])}

    def sample(self) -> dict[str, Tensor]:
        """``z_draw``: one draw of the whole path; -1 past the end of a sequence."""
        return {"z_draw": self._owned(self.inner.sample()["z_draw"])}

    def _owned(self, path: Tensor) -> Tensor:
        return torch.where(path >= 0, self.owner[path.clamp_min(0)], -1)


@final
class SemiMarkov(Collapsed):
    """Distribution over ``x`` (N, T, D).

    Parameters
    ----------
    log_initial : (K,) log-weights of the first state; they need not be normalised.
    log_jump : (K, K), from row to column; the diagonal is not read.
    durations : of the states.
    duration_statistics : statistics of its factors.
    emission, statistics : as for :class:`~ppgen.collapsed.hidden_markov.HiddenMarkov`.
    shape : (N, T) of what :meth:`sample` draws.
    """

    support = constraints.independent(constraints.real, 2)
    sweeps = HiddenMarkov.sweeps

    def __init__(
        self,
        log_initial: Float[Tensor, " K"],
        log_jump: Float[Tensor, "K K"],
        durations: Durations,
        duration_statistics: Statistics,
        emission: Emission,
        statistics: Natural,
        shape: tuple[int, int],
    ) -> None:
        K, R = len(log_initial), durations.phases
        self.owner = torch.arange(K, device=log_initial.device).repeat_interleave(R)
        entry = durations.entry(duration_statistics)
        same = torch.eye(K, dtype=torch.bool, device=log_initial.device)
        jump = log_jump.masked_fill(same, -torch.inf)
        leaving = durations.leaving(duration_statistics)
        moves = leaving[:, :, None, None] + jump[:, None, :, None] + entry
        stays = durations.within(duration_statistics)[:, :, None, :]
        moves = torch.where(same[:, None, :, None], stays, moves).reshape(K * R, K * R)
        initial = (log_initial[:, None] + entry).flatten()
        self.inner = HiddenMarkov(initial, moves, Tied(emission, self.owner), statistics, shape)
        super().__init__(self.inner.batch_shape, self.inner.event_shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "SemiMarkov":
        return unexpanded(self, batch_shape)

    @property
    def apart(self) -> bool:
        return self.inner.apart

    def log_prob(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, " N"]:
        """Log evidence of each sequence, or what :class:`HiddenMarkov` says in its place across gaps."""
        return self.inner.log_prob(x)

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, Block]:
        """What is unknown of the frames, where that has no closed form."""
        return self.inner.blocks(x)

    def start(self, x: Float[Tensor, "N T D"]) -> Local:
        return self.inner.start(x)

    def exact(self, x: Float[Tensor, "N T D"]) -> bool:
        """Whether no frame lacks a closed form."""
        return self.inner.exact(x)

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        """The states and phases."""
        return self.inner.summed(x, m)

    def energy(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log joint density of each sequence."""
        return self.inner.energy(x, m)

    def joint(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log joint density of each sequence and a path ``z`` of its states, up to a constant.

        The ``phases`` are summed out unless they are given; durations that cannot be so long are then cut where that
        costs least.
        """
        if "phases" in values:
            return self.inner.joint(x, {**values, "z": values["phases"]})
        other = self.owner != values["z"][..., None]
        inner = self.inner
        potential = inner.emission.potential(x, inner.statistics) - UNLIKELY * other
        lengths = sequence_lengths(x)
        chain = discrete_chain(inner.log_initial, inner.log_transition, potential, lengths=lengths)
        return torch.where(lengths > 0, chain.log_normalizer, 0.0)

    def draw(self, x: Float[Tensor, "N T D"]) -> dict[str, Tensor]:
        """One joint draw of the states ``z`` and their ``phases``, numbered through all states."""
        drawn = self.inner.draw(x)
        return {**drawn, "z": self.owner[drawn["z"].clamp_min(0)], "phases": drawn["z"].clamp_min(0)}

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given a path ``z`` of states; trailing NaN stays."""
        phases = len(self.owner) // len(next(iter(self.inner.statistics.values())))
        return self.inner.fill(x, {"z": values["z"].clamp_min(0) * phases})

    def impute(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries replaced by one joint draw; trailing NaN stays."""
        return self.inner.impute(x)

    def log_prob_steps(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T"]:
        """Log-density of each step given those before it; zero past the end of a sequence."""
        return self.inner.log_prob_steps(x)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence, its last duration going on."""
        return self.inner.forecast(x, horizon)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh segments, and their observations."""
        return self.inner.sample(sample_shape)

    def completed(self, x: Float[Tensor, "N T D"]) -> SegmentLatents:
        """Posterior of the states, across gaps without a closed form that of the lower bound."""
        return SegmentLatents(self.inner.completed(x), self.owner)

    def latents(self, x: Float[Tensor, "N T D"]) -> SegmentLatents:
        """Posterior of the states given ``x``."""
        return SegmentLatents(self.inner.latents(x), self.owner)
