r"""Several independent Markov chains whose effects on the observations add: a factorial hidden Markov model.

.. math:: z^{(c)}_1 \sim \mathrm{Cat}(\pi^{(c)}), \quad z^{(c)}_t \sim \mathrm{Cat}(P^{(c)}_{z^{(c)}_{t-1}}), \quad
    x_t \sim \mathcal N\Big(b + \sum_c W^{(c)}_{z^{(c)}_t},\; R\Big)

Two distributions of the same kind of data. `ProductMarkov` sums all chains out together: every combination of their
states is one state of a hidden Markov model with tied means and transitions, so it is exact, in time proportional to
the square of the number of combinations. `FactorialMarkov` holds each chain in mean field, exact given the others, so
it is a lower bound, in time proportional to the sum of the squares of the chains' states. References: Ghahramani &
Jordan (1997), §3 and the structured approximation of its appendix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot

from ppgen.collapsed.base import Collapsed, Local, slope
from ppgen.collapsed.block import DiscreteBlock
from ppgen.collapsed.hidden_markov import HiddenMarkov
from ppgen.collapsed.linear_frames import draw_frames, seen_frames
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.emissions.gaussian import Gaussian
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.regression import Regression
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain

ANNEALING = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # weights of the data from which updates begin
Own = TypeVar("Own", bound=Collapsed)

__all__ = ["Chain", "FactorialLatents", "FactorialMarkov", "ProductMarkov"]


class Chain(NamedTuple):
    """Log-weights of one chain's first state and of its moves; they need not be normalised."""

    log_initial: Float[Tensor, " K"]
    log_transition: Float[Tensor, "K K"]


@final
@dataclass(frozen=True)
class FactorialLatents:
    """Posterior of the states of every chain, of a batch of sequences."""

    probabilities: Mapping[str, Float[Tensor, "N T K"]]
    path: Callable[[], Mapping[str, Int[Tensor, "N T"]]]
    best: Callable[[], Mapping[str, Int[Tensor, "N T"]]]
    lengths: Int[Tensor, " N"]

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Name -> its axes; those of the states are called after the chain."""
        each = {name: ("sequence", "time", f"{name.removeprefix('z_')}_state") for name in self.probabilities}
        whole = {f"{name}_{kind}": ("sequence", "time") for name in self.probabilities for kind in ("mode", "draw")}
        return {**each, **whole}

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``z_<chain>``: probability of each of its states at each step; NaN past the end of a sequence."""
        return {
            name: torch.where(self._there(value.shape[1])[..., None], value, torch.nan)
            for name, value in self.probabilities.items()
        }

    @property
    def mode(self) -> dict[str, Tensor]:
        """``z_<chain>_mode``: the most probable path, of all chains together where they are summed out together."""
        return {f"{name}_mode": self._end(path) for name, path in self.best().items()}

    def sample(self) -> dict[str, Tensor]:
        """``z_<chain>_draw``: one draw of all paths; -1 past the end of a sequence."""
        return {f"{name}_draw": self._end(path) for name, path in self.path().items()}

    def _there(self, steps: int) -> Tensor:
        return torch.arange(steps, device=self.lengths.device) < self.lengths[:, None]

    def _end(self, path: Tensor) -> Tensor:
        return torch.where(self._there(path.shape[1]), path, -1)


@final
class ProductMarkov(Collapsed):
    """Distribution over ``x`` (N, T, D) with all chains summed out together.

    Parameters
    ----------
    chains : {name: log-weights}.
    emission : regression on the states of all chains, one number for each, and a one.
    statistics : its natural statistics.
    shape : (N, T) of what :meth:`sample` draws.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, chains: Mapping[str, Chain], emission: Regression, statistics: Natural, shape: tuple[int, int]
    ) -> None:
        self.sizes = {name: len(chain.log_initial) for name, chain in chains.items()}
        sizes = list(self.sizes.values())
        self.combinations = dict(zip(chains, _combinations(sizes).unbind(-1), strict=True))
        picked = list(zip(self.combinations.values(), chains.values(), strict=True))
        self.inner = HiddenMarkov(
            sum(chain.log_initial[z] for z, chain in picked),  # type: ignore[arg-type]
            sum(chain.log_transition[z][:, z] for z, chain in picked),  # type: ignore[arg-type]
            Gaussian(emission.outputs, covariance="full" if emission.full else "diagonal"),
            _of_combinations(emission, statistics, _indicators(list(self.combinations.values()), sizes)),
            shape,
        )
        super().__init__(self.inner.batch_shape, self.inner.event_shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "ProductMarkov":
        return _unexpanded(self, batch_shape)

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        return self.inner.summed(x, m)

    def energy(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Log density of each sequence."""
        return self.inner.energy(x, m)

    def joint(self, x: Float[Tensor, "N T D"], values: Mapping[str, Int[Tensor, "N T"]]) -> Float[Tensor, " N"]:
        """Log joint density of each sequence and a path of each chain, up to a constant."""
        return self.inner.joint(x, {"z": self._together(values)})

    def draw(self, x: Float[Tensor, "N T D"]) -> dict[str, Tensor]:
        """One joint draw of the paths of all chains."""
        return self._apart(self.inner.draw(x)["z"].clamp_min(0))

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given the paths; trailing NaN stays."""
        return self.inner.fill(x, {"z": self._together(values)})

    def impute(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries replaced by one joint draw; trailing NaN stays."""
        return self.inner.impute(x)

    def log_prob_steps(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T"]:
        """Log density of each step given those before it; zero past the end of a sequence."""
        return self.inner.log_prob_steps(x)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence."""
        return self.inner.forecast(x, horizon)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh paths, and their observations."""
        return self.inner.sample(sample_shape)

    def latents(self, x: Float[Tensor, "N T D"]) -> FactorialLatents:
        """Posterior of the states of every chain given ``x``."""
        chain, lengths = self.summed(x, {}), sequence_lengths(x)
        together = chain.marginals
        each = {name: together @ one_hot(z).to(together) for name, z in self.combinations.items()}
        return FactorialLatents(
            each, lambda: self._apart(chain.sample(1)[0].clamp_min(0)), lambda: self._apart(chain.mode()), lengths
        )

    def _together(self, values: Mapping[str, Int[Tensor, "N T"]]) -> Int[Tensor, "N T"]:
        z = torch.zeros_like(next(iter(values.values())))
        for name, size in self.sizes.items():
            z = z * size + values[name].clamp_min(0)
        return z

    def _apart(self, z: Int[Tensor, "N T"]) -> dict[str, Int[Tensor, "N T"]]:
        return {name: own.to(z.device)[z] for name, own in self.combinations.items()}


@final
class FactorialMarkov(Collapsed):
    """Distribution over ``x`` (N, T, D) with each chain held in mean field; the parameters of `ProductMarkov`."""

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, chains: Mapping[str, Chain], emission: Regression, statistics: Natural, shape: tuple[int, int]
    ) -> None:
        self.chains, self.emission, self.statistics = dict(chains), emission, statistics
        self.sizes = [len(chain.log_initial) for chain in chains.values()]
        super().__init__(torch.Size(shape[:1]), torch.Size([shape[1], emission.outputs]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "FactorialMarkov":
        return _unexpanded(self, batch_shape)

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, DiscreteBlock]:
        lengths = sequence_lengths(x)
        return {
            name: DiscreteBlock(x.shape[1], size, lengths) for name, size in zip(self.chains, self.sizes, strict=True)
        }

    def start(self, x: Float[Tensor, "N T D"]) -> Local:
        """Posteriors that see the data through ever less noise, from nearly all of it (deterministic annealing).

        From even weights of the states, updates end in poor optima. Reference: Ueda & Nakano (1998).
        """
        blocks, local = self.blocks(x), super().start(x)
        with torch.no_grad():
            m = {name: block.solved(local[name])[0] for name, block in blocks.items()}
            for weight in ANNEALING:
                for name, block in blocks.items():
                    local[name] = slope(self._given(x, m, name, weight), m[name])
                    m[name] = block.solved(local[name])[0]
        return local

    def _given(self, x: Tensor, m: Mapping[str, Natural], name: str, weight: float) -> Callable[[Natural], Tensor]:
        """The energy as a function of one chain."""
        return lambda own: self._energy(x, {**m, name: own}, weight).sum()

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log density of the paths and of what is seen of each frame."""
        return self._energy(x, m, 1.0)

    def _energy(self, x: Tensor, m: Mapping[str, Natural], weight: float) -> Float[Tensor, " N"]:
        """The same, of data whose log density has this weight."""
        moves = [
            m[name]["initial"] @ chain.log_initial + (m[name]["transition"] * chain.log_transition).sum((-1, -2))
            for name, chain in self.chains.items()
        ]
        r = torch.cat([m[name]["state"] for name in self.chains], -1)
        outer, pull, own = seen_frames(self.emission, self.statistics, x, x.new_ones(*x.shape[:2], 1), r.shape[-1])
        between = ~torch.block_diag(*[torch.ones(size, size) for size in self.sizes]).bool()
        apart = outer * between.to(x)
        square = ((r @ apart) * r if outer.dim() == 2 else (apart @ r[..., None])[..., 0] * r).sum(-1)
        alone = (outer.diagonal(dim1=-2, dim2=-1) * r).sum(-1)  # within a chain there is one state at a time
        seen = square + alone + (pull * r).sum(-1) + own * exists(x)
        return sum(moves) + weight * seen.sum(-1)

    def exact(self, x: Float[Tensor, "N T D"]) -> bool:
        """Whether there is one chain."""
        return len(self.chains) == 1

    def latents(self, x: Float[Tensor, "N T D"]) -> FactorialLatents:
        """Posterior of the states of every chain in mean field given ``x``; draws are of Gibbs sweeps."""
        blocks, local = self.blocks(x), self.settle(x)
        each = {name: block.solved(local[name])[0]["state"] for name, block in blocks.items()}
        return FactorialLatents(
            each,
            lambda: self.draw(x),
            lambda: {name: block.chain(local[name]).mode() for name, block in blocks.items()},
            sequence_lengths(x),
        )

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given the paths; trailing NaN stays."""
        return torch.where(exists(x)[..., None], self._observe(x, values), x)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed)."""
        end, values = sequence_lengths(x), self.draw(x)
        row, last = torch.arange(len(x), device=x.device), (end - 1).clamp_min(0)
        ahead = {}
        for name, (initial, transition) in self.chains.items():
            moves = transition.log_softmax(-1)
            first = torch.where((end > 0)[:, None], moves[values[name][row, last]], initial.log_softmax(-1))
            ahead[name] = discrete_chain(first, moves, first.new_zeros(len(x), horizon, len(initial))).sample(1)[0]
        return self._observe(x.new_full((len(x), horizon, x.shape[-1]), torch.nan), ahead)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh paths, and their observations."""
        count, (N,), (T, D) = torch.Size(sample_shape).numel(), self.batch_shape, self.event_shape
        empty = torch.full((count * N, T, D), torch.nan, dtype=torch.float64, device=self.statistics["log_det"].device)
        paths = {
            name: discrete_chain(
                initial.log_softmax(-1), transition.log_softmax(-1), empty.new_zeros(count * N, T, len(initial))
            ).sample(1)[0]
            for name, (initial, transition) in self.chains.items()
        }
        return self._observe(empty, paths).reshape(*sample_shape, N, T, D)

    def _observe(self, x: Tensor, values: Mapping[str, Int[Tensor, "N T"]]) -> Float[Tensor, "N T D"]:
        states = _indicators([values[name].clamp_min(0) for name in self.chains], self.sizes)
        return draw_frames(*self.emission.mean_and_precision(self.statistics), x, states)


def _combinations(sizes: Sequence[int]) -> Int[Tensor, "S C"]:
    """Every combination of the states of the chains, the last chain's changing fastest."""
    return torch.cartesian_prod(*[torch.arange(size) for size in sizes]).reshape(-1, len(sizes))


def _indicators(paths: Sequence[Tensor], sizes: Sequence[int]) -> Float[Tensor, "... R"]:
    """Regressors: which state each chain is in, and a one."""
    each = [one_hot(z, size).double() for z, size in zip(paths, sizes, strict=True)]
    return torch.cat([*each, torch.ones_like(each[0][..., :1])], -1)


def _of_combinations(emission: Regression, s: Natural, r: Float[Tensor, "S R"]) -> Natural:
    """Statistics of a Gaussian emission of every combination, which are linear in those of the regression."""
    r = r.to(s["linear"])
    if emission.full:
        quadratic = ((r @ s["quadratic"]) * r).sum(-1)
        precision, log_det = s["precision"].expand(len(r), -1, -1), s["log_det"].expand(len(r))
        return {"precision": precision, "linear": r @ s["linear"].mT, "quadratic": quadratic, "log_det": log_det}
    quadratic = torch.einsum("sr,drq,sq->sd", r, s["quadratic"], r)
    precision, log_det = (value.expand(len(r), -1) for value in (s["precision"][..., 0, 0], s["log_det"]))
    return {"precision": precision, "linear": r @ s["linear"][:, 0].mT, "quadratic": quadratic, "log_det": log_det}


def _unexpanded(own: Own, batch_shape: Shape) -> Own:
    if tuple(batch_shape) != tuple(own.batch_shape):
        raise DataError(
            f"{type(own).__name__}: must have one batch dimension of {tuple(own.batch_shape)} sequences, got "
            f"{tuple(batch_shape)}"
        )
    return own
