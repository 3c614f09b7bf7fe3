r"""Several independent Markov chains whose effects on the observations add: a factorial hidden Markov model.

.. math:: z^{(c)}_1 \sim \mathrm{Cat}(\pi^{(c)}), \quad z^{(c)}_t \sim \mathrm{Cat}(P^{(c)}_{z^{(c)}_{t-1}}), \quad
    x_t \sim \mathcal N\Big(b + \sum_c W^{(c)}_{z^{(c)}_t},\; R\Big)

Two distributions of the same kind of data. `ProductMarkov` sums all chains out together: every combination of their
states is one state of a hidden Markov model with tied means and transitions, so it is exact, in time proportional to
the square of the number of combinations. `FactorialMarkov` holds groups of chains in mean field, each group exact given
the others: it is a lower bound, in time proportional to the sum of the squares of the groups' combinations. With one
chain in each group this is the structured approximation of Ghahramani & Jordan (1997), §3.5; larger groups are
a tighter bound (Saul & Jordan 1996, on tractable substructures).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot

from ppgen.collapsed.base import Collapsed, Local, slope, unexpanded
from ppgen.collapsed.block import DiscreteBlock
from ppgen.collapsed.hidden_markov import HiddenMarkov
from ppgen.collapsed.linear_frames import draw_frames, seen_frames
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.emissions.gaussian import Gaussian
from ppgen.families.family import Natural
from ppgen.families.regression import Regression
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain

ANNEALING = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # weights of the data from which updates begin

__all__ = ["Chain", "FactorialLatents", "FactorialMarkov", "ProductMarkov"]


class Chain(NamedTuple):
    """Log-weights of one chain's first state and of its moves; they need not be normalised."""

    log_initial: Float[Tensor, " K"]
    log_transition: Float[Tensor, "K K"]


@final
class Group:
    """Chains whose states are taken together: each combination of them is one state of a chain of its own.

    ``states`` says for each chain in which state it is in each of the S combinations, ``together`` are the log-weights
    of the combinations, and ``indicators`` (S, R) the regressors: which state each of all the chains is in, zero for
    chains of other groups.
    """

    def __init__(self, chains: Mapping[str, Chain], names: Sequence[str]) -> None:
        self.sizes = {name: len(chains[name].log_initial) for name in names}
        each = torch.cartesian_prod(*[torch.arange(size) for size in self.sizes.values()]).reshape(-1, len(names))
        self.states: dict[str, Tensor] = dict(zip(names, each.unbind(-1), strict=True))
        self.together = Chain(
            sum(chains[name].log_initial[z] for name, z in self.states.items()),  # type: ignore[arg-type]
            sum(chains[name].log_transition[z][:, z] for name, z in self.states.items()),  # type: ignore[arg-type]
        )
        columns = [
            one_hot(self.states[name], len(chain.log_initial)).double()
            if name in self.states
            else torch.zeros(len(each), len(chain.log_initial), dtype=torch.float64)
            for name, chain in chains.items()
        ]
        self.indicators = torch.cat(columns, -1)

    def joined(self, paths: Mapping[str, Int[Tensor, "N T"]]) -> Int[Tensor, "N T"]:
        """The combination at each step of paths of all chains of the group; -1 counts as the first state."""
        z = torch.zeros_like(next(iter(paths.values())))
        for name, size in self.sizes.items():
            z = z * size + paths[name].clamp_min(0)
        return z

    def parted(self, z: Int[Tensor, "N T"]) -> dict[str, Int[Tensor, "N T"]]:
        """The path of each chain in a path of combinations."""
        return {name: own.to(z.device)[z] for name, own in self.states.items()}


def grouped(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names of the chains in groups of at most so many combinations each, in their order; each has a chain."""
    found: list[list[str]] = []
    for name, size in sizes.items():
        if found and math.prod(sizes[own] for own in found[-1]) * size <= most:
            found[-1].append(name)
        else:
            found.append([name])
    return found


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
        self.group = Group(chains, list(chains))
        one = torch.ones(len(self.group.indicators), 1, dtype=torch.float64)
        self.inner = HiddenMarkov(
            *self.group.together,
            Gaussian(emission.outputs, covariance="full" if emission.full else "diagonal"),
            _of_combinations(emission, statistics, torch.cat([self.group.indicators, one], -1)),
            shape,
        )
        super().__init__(self.inner.batch_shape, self.inner.event_shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "ProductMarkov":
        return unexpanded(self, batch_shape)

    @property
    def apart(self) -> bool:
        return self.inner.apart

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        return self.inner.summed(x, m)

    def energy(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Log density of each sequence."""
        return self.inner.energy(x, m)

    def joint(self, x: Float[Tensor, "N T D"], values: Mapping[str, Int[Tensor, "N T"]]) -> Float[Tensor, " N"]:
        """Log joint density of each sequence and a path of each chain, up to a constant."""
        return self.inner.joint(x, {"z": self.group.joined(values)})

    def draw(self, x: Float[Tensor, "N T D"]) -> dict[str, Tensor]:
        """One joint draw of the paths of all chains."""
        return self.group.parted(self.inner.draw(x)["z"].clamp_min(0))

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given the paths; trailing NaN stays."""
        return self.inner.fill(x, {"z": self.group.joined(values)})

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
        each = {name: together @ one_hot(z).to(together) for name, z in self.group.states.items()}
        return FactorialLatents(
            each,
            lambda: self.group.parted(chain.sample(1)[0].clamp_min(0)),
            lambda: self.group.parted(chain.mode()),
            lengths,
        )


@final
class FactorialMarkov(Collapsed):
    """Distribution over ``x`` (N, T, D) with groups of chains held in mean field, each exact given the others.

    Parameters
    ----------
    chains, emission, statistics, shape : those of `ProductMarkov`.
    most : number of combinations of states up to which chains are held as one group; 1 holds each by itself.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        chains: Mapping[str, Chain],
        emission: Regression,
        statistics: Natural,
        shape: tuple[int, int],
        most: int = 1,
    ) -> None:
        self.chains, self.emission, self.statistics = dict(chains), emission, statistics
        self.sizes = {name: len(chain.log_initial) for name, chain in chains.items()}
        self.groups = {"+".join(names): Group(self.chains, names) for names in grouped(self.sizes, most)}
        super().__init__(torch.Size(shape[:1]), torch.Size([shape[1], emission.outputs]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "FactorialMarkov":
        return unexpanded(self, batch_shape)

    @property
    def apart(self) -> bool:
        return not self.emission.full

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, DiscreteBlock]:
        """One chain for each group, whose states are the combinations of its chains' states."""
        lengths = sequence_lengths(x)
        return {b: DiscreteBlock(x.shape[1], len(group.indicators), lengths) for b, group in self.groups.items()}

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
        """The energy as a function of one group."""
        return lambda own: self._energy(x, {**m, name: own}, weight).sum()

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log density of the paths and of what is seen of each frame."""
        return self._energy(x, m, 1.0)

    def _energy(self, x: Tensor, m: Mapping[str, Natural], weight: float) -> Float[Tensor, " N"]:
        """The same, of data whose log density has this weight."""
        moves, r, alone = x.new_zeros(len(x)), x.new_zeros(()), x.new_zeros(())
        width, inside = sum(self.sizes.values()), x.new_zeros(())
        outer, pull, own = seen_frames(self.emission, self.statistics, x, x.new_ones(*x.shape[:2], 1), width)
        for name, group in self.groups.items():
            columns, state = group.indicators.to(x), m[name]["state"]
            pairs = columns[:, :, None] * columns[:, None, :]
            moves = moves + m[name]["initial"] @ group.together.log_initial
            moves = moves + (m[name]["transition"] * group.together.log_transition).sum((-1, -2))
            r, inside = r + state @ columns, inside + columns.amax(0).outer(columns.amax(0))
            alone = alone + ((outer.flatten(-2) @ pairs.flatten(1).mT) * state).sum(-1)
        between = outer * (1 - inside)
        square = ((r @ between) * r if outer.dim() == 2 else (between @ r[..., None])[..., 0] * r).sum(-1)
        seen = square + alone + (pull * r).sum(-1) + own * exists(x)
        return moves + weight * seen.sum(-1)

    def joint(self, x: Float[Tensor, "N T D"], values: Mapping[str, Int[Tensor, "N T"]]) -> Float[Tensor, " N"]:
        """Log joint density of each sequence and a path of each chain, up to a constant."""
        return super().joint(x, {b: group.joined(values) for b, group in self.groups.items()})

    def draw(self, x: Float[Tensor, "N T D"]) -> dict[str, Tensor]:
        """One joint draw of the paths of all chains, by Gibbs sweeps over the groups."""
        return self._parted(super().draw(x))

    def latents(self, x: Float[Tensor, "N T D"]) -> FactorialLatents:
        """Posterior of the states of every chain in mean field given ``x``; draws are of Gibbs sweeps."""
        blocks, local = self.blocks(x), self.settle(x)
        each: dict[str, Tensor] = {}
        for b, group in self.groups.items():
            together = blocks[b].solved(local[b])[0]["state"]
            each |= {name: together @ one_hot(z).to(together) for name, z in group.states.items()}
        return FactorialLatents(
            {name: each[name] for name in self.chains},
            lambda: self.draw(x),
            lambda: self._parted({b: block.chain(local[b]).mode() for b, block in blocks.items()}),
            sequence_lengths(x),
        )

    def _parted(self, paths: Mapping[str, Int[Tensor, "N T"]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for b, group in self.groups.items():
            found |= group.parted(paths[b])
        return {name: found[name] for name in self.chains}

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
        states = _indicators([values[name].clamp_min(0) for name in self.chains], list(self.sizes.values()))
        return draw_frames(
            *self.emission.mean_and_precision(self.statistics), x, states, diagonal=not self.emission.full
        )


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
    s = emission.each(s)
    quadratic = torch.einsum("sr,drq,sq->sd", r, s["quadratic"], r)
    precision, log_det = (value.expand(len(r), -1) for value in (s["precision"][..., 0, 0], s["log_det"]))
    return {"precision": precision, "linear": r @ s["linear"][:, 0].mT, "quadratic": quadratic, "log_det": log_det}
