r"""A hidden Markov model as one distribution over whole sequences, its states summed out.

``log_prob(x)`` is the evidence, exact by message passing. With an autoregressive emission and missing frames it is the
lower bound of :mod:`ppgen.emissions.autoregressive`, which has a gradient; answers about such data come from paths of
states along which the frames are summed out (:mod:`ppgen.collapsed.across_gaps`). The first state emits the first
observation. NaN in ``x`` is not observed; trailing NaN means a shorter sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.collapsed.across_gaps import AcrossGaps, GapLatents
from ppgen.collapsed.base import Collapsed, Local
from ppgen.collapsed.block import Block
from ppgen.collapsed.estimated import wanted
from ppgen.collapsed.paths import Paths
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.emissions.emission import Emission
from ppgen.emissions.frames import Frames
from ppgen.errors import DataError, FitError
from ppgen.families.family import Natural
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain

__all__ = ["HiddenMarkov", "HiddenMarkovLatents"]

Shape = torch.Size | list[int] | tuple[int, ...]

ONCE = torch.Size()
FRAMES = "frames"  # the block of what is unknown of frames
ESTIMATED = (
    "unbiased estimates of p(x | theta) by a particle filter, for sequences with missing frames; "
    "their logarithms differ from call to call where a gap is long"
)


@final
@dataclass(frozen=True)
class HiddenMarkovLatents:
    """Posterior of the states (and of latent frames) of a batch of sequences."""

    chain: DiscreteChain
    frames: Frames | None
    eta: Natural | None
    lengths: Int[Tensor, " N"]

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "z": ("sequence", "time", "state"),
        "z_mode": ("sequence", "time"),
        "z_draw": ("sequence", "time"),
        "h": ("sequence", "time", "component"),
    }

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``z``: probability of each state at each step; ``h``: mean of the latent frames, where there are any.

        NaN past the end of a sequence.
        """
        found = {"z": self.chain.marginals}
        if self.frames is not None:
            latent = self.frames.latent
            found["h"] = self.frames.value if latent is None or self.eta is None else latent.mean(self.eta)
        exists = torch.arange(found["z"].shape[-2], device=self.lengths.device) < self.lengths[:, None]
        return {name: torch.where(exists[..., None], value, torch.nan) for name, value in found.items()}

    @property
    def mode(self) -> dict[str, Tensor]:
        """``z_mode``: the most probable path; -1 past the end of a sequence."""
        return {"z_mode": self._end(self.chain.mode())}

    def sample(self) -> dict[str, Tensor]:
        """``z_draw``: one draw of the whole path; -1 past the end of a sequence."""
        return {"z_draw": self._end(self.chain.sample(1)[0])}

    def _end(self, path: Tensor) -> Tensor:
        return torch.where(torch.arange(path.shape[-1], device=path.device) < self.lengths[:, None], path, -1)


@final
class HiddenMarkov(Collapsed):
    """Distribution over ``x`` (N, T, D) for initial and transition log-weights and emission statistics.

    Parameters
    ----------
    log_initial : (K,), need not be normalised (variational Bayes passes expected logarithms).
    log_transition : (K, K), from row to column.
    emission : the :class:`~ppgen.emissions.emission.Emission`.
    statistics : its natural statistics, batch shape (K,).
    shape : (N, T) of what :meth:`sample` draws.
    """

    support = constraints.independent(constraints.real, 2)
    sweeps = 5

    def __init__(
        self,
        log_initial: Float[Tensor, " K"],
        log_transition: Float[Tensor, "K K"],
        emission: Emission,
        statistics: Natural,
        shape: tuple[int, int] = (1, 1),
    ) -> None:
        self.log_initial, self.log_transition = log_initial, log_transition
        self.emission, self.statistics = emission, statistics
        self._read: tuple[Tensor, int, Frames | None] | None = None
        N, T = shape
        super().__init__(torch.Size([N]), torch.Size([T, emission.features]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: TorchDistribution | None = None) -> "HiddenMarkov":
        if len(batch_shape) != 1:
            raise DataError(f"HiddenMarkov: one batch dimension (sequences), got batch shape {tuple(batch_shape)}")
        shape = (batch_shape[0], self.event_shape[0])
        return HiddenMarkov(self.log_initial, self.log_transition, self.emission, self.statistics, shape)

    @property
    def apart(self) -> bool:
        return self.emission.apart

    def log_prob(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, " N"]:
        """Log evidence of each sequence; with gaps that have no closed form a lower bound, or inside `estimates` an
        estimate whose exponential is unbiased.
        """
        said = wanted()
        across = None if said is None else self._across(x)
        if said is None or across is None:
            return self.evidence(x, self.settle(x))
        said.words = ESTIMATED
        return across.log_evidence()

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, Block]:
        """What is unknown of the frames, where that has no closed form."""
        frames = self._frames(x)
        return {} if frames is None or frames.latent is None else {FRAMES: frames.latent}

    def start(self, x: Float[Tensor, "N T D"]) -> Local:
        """The frames given equal weights of the states."""
        frames = self._frames(x)
        if frames is None or frames.latent is None:
            return {}
        return {FRAMES: self.emission.given(frames.latent, self.statistics)}

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        """The states."""
        frames = self._frames(x)
        if frames is not None:
            frames = replace(frames, moments=m.get(FRAMES))
        potential = self.emission.potential(x, self.statistics, frames)
        return discrete_chain(self.log_initial, self.log_transition, potential, lengths=sequence_lengths(x))

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Log density that depends on neither the states nor what is unknown of the frames."""
        frames = self._frames(x)
        return x.new_zeros(len(x), dtype=self.log_initial.dtype) if frames is None else frames.constant

    def energy(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log joint density of each sequence; a sequence without observations has the density one."""
        value = self.summed(x, m).log_normalizer
        return torch.where(sequence_lengths(x) > 0, value, 0.0) + self.rest(x, m)

    def joint(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log joint density of each sequence and a path ``z`` of its states, up to a constant."""
        z, there = values["z"], exists(x)
        potential = self.emission.potential(x, self.statistics)
        emitted = (torch.gather(potential, -1, z[..., None])[..., 0] * there).sum(-1)
        moves = torch.where(there[:, 1:], self.log_transition[z[:, :-1], z[:, 1:]], 0.0)
        return self.log_initial[z[:, 0]] * there[:, 0] + moves.sum(-1) + emitted

    def exact(self, x: Float[Tensor, "N T D"]) -> bool:
        """Whether no frame lacks a closed form."""
        return not self.blocks(x)

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given a path ``z`` of states; trailing NaN stays."""
        return self._fill(x, values["z"])

    def log_prob_steps(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T"]:
        """Log-density of each step given those before it, in one forward pass; zero past the end of a sequence.

        Raises
        ------
        FitError : missing frames have no closed form, so that :meth:`log_prob` is a bound of the whole sequence.
        """
        if not self.exact(x):
            raise FitError(
                f"HiddenMarkov: the density of a step given those before it needs whole frames of "
                f"{type(self.emission).__name__}, got gaps, for which only a bound of the whole sequence is known; "
                "compare sequences by log_likelihood(x), or cut the data at its gaps"
            )
        return self.summed(x, {}).log_steps() + self.emission.log_frames(x)

    def latents(self, x: Float[Tensor, "N T D"]) -> HiddenMarkovLatents | GapLatents:
        """Posterior of the states given ``x``."""
        across = self._across(x)
        return self.completed(x) if across is None else across.latents()

    def completed(self, x: Float[Tensor, "N T D"]) -> HiddenMarkovLatents:
        """Posterior of the states given ``x``; across gaps without a closed form that of the lower bound.

        The bound treats states and missing frames as independent, so it is too sure across gaps, and many times quicker
        than :meth:`latents`. Without such gaps it is the same.
        """
        local, blocks = self.settle(x), self.blocks(x)
        m = {b: block.solved(local[b])[0] for b, block in blocks.items()}
        return HiddenMarkovLatents(self.summed(x, m), self._frames(x), local.get(FRAMES), sequence_lengths(x))

    def impute(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries replaced by one joint draw; trailing NaN stays.

        Exact where the emission integrates missing entries out, or where all paths of states through a gap are followed
        (:mod:`ppgen.messages.switching`); else from a path among some hundred weighted ones, fresh ones at every call.
        """
        if not torch.isnan(x).any():
            return x.clone()
        return self._fill(x, self._path(x))

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed)."""
        lengths, path = sequence_lengths(x), self._path(x)
        past = x if self.emission.closed else self._fill(x, path)
        last = path[torch.arange(len(x)), (lengths - 1).clamp_min(0)]
        log_initial, log_transition = self._normalized()
        next_state = torch.where((lengths > 0)[:, None], log_transition[last], log_initial)
        potential = next_state.new_zeros(len(x), horizon, len(log_transition))
        ahead = discrete_chain(next_state, log_transition, potential).sample(1)[0]
        return self.emission.extend(past, self.statistics, ahead, lengths)

    def sample(self, sample_shape: Shape = ONCE) -> Float[Tensor, "*S N T D"]:
        """Replicated data: a fresh path of states, and its observations."""
        count = torch.Size(sample_shape).numel()
        (N,), (T, D) = self.batch_shape, self.event_shape
        potential = self.log_initial.new_zeros(count * N, T, len(self.log_initial))
        path = discrete_chain(*self._normalized(), potential).sample(1)[0]
        return self.emission.sample(self.statistics, path).reshape(*sample_shape, N, T, D)

    def _fill(self, x: Tensor, path: Int[Tensor, "N T"]) -> Tensor:
        filled = self.emission.fill(x, self.statistics, path)
        return torch.where(exists(x)[..., None], filled, x)

    def _across(self, x: Tensor) -> AcrossGaps | None:
        """The states where frames have no closed form; None where all do."""
        with torch.no_grad():
            opened = self.emission.switching(x, self.statistics)
        if opened is None:
            return None
        switching, constant = opened
        paths = Paths(switching, self.log_initial, self.log_transition)
        return AcrossGaps(x, self.emission, self.statistics, paths, constant)

    def _path(self, x: Tensor) -> Int[Tensor, "N T"]:
        """One draw of the states; some state where nothing was observed at all."""
        across = self._across(x)
        if across is not None:
            return across.path()
        return self.summed(x, {}).sample(1)[0].clamp_min(0)

    def _frames(self, x: Tensor) -> Frames | None:
        """The data as frames, read once for as long as the same data is asked about."""
        version = -1 if x.is_inference() else x._version
        if self._read is None or self._read[0] is not x or self._read[1] != version or version < 0:
            with torch.no_grad():
                self._read = x, version, self.emission.frames(x)
        return self._read[2]

    def _normalized(self) -> tuple[Tensor, Tensor]:
        return self.log_initial.log_softmax(-1), self.log_transition.log_softmax(-1)
