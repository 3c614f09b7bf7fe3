r"""Many data sets of one program, a few chains each, sampled together: one density over R x C rows.

The program runs once, mapped over data sets and over chains. So that hard and easy data sets do not share a metric,
each chain lives in coordinates of its own data set,

.. math:: v = m + c L y,

with centre m, root L of the covariance and stretch c learnt while tuning: m and L from the draws of that data set (as
``adaptation.Spread`` does for one), c, which stands for its step size, by its acceptance rate. In
y the posteriors look alike, and one sampler runs them all, with trajectories as long as suits a standard normal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from ppgen.inference.calibration.shared_gaps import SharedGaps
from ppgen.inference.calibration.simulation import Data
from ppgen.inference.mcmc.adaptation import (
    APART,
    DENSE_SHRINKAGE,
    SMALLEST_VARIANCE,
    Tuning,
    diagonal,
    square,
    window_ends,
    window_start,
)
from ppgen.inference.mcmc.chees import Chees
from ppgen.inference.mcmc.hamiltonian import Ensemble, Leapfrog
from ppgen.inference.mcmc.nuts import Nuts
from ppgen.inference.mcmc.sampling import first_tuning
from ppgen.inference.mcmc.starts import Start, pathfinder
from ppgen.programs.density import Density, Gradient, private_pyro
from ppgen.programs.tracing import Batch, Mode, build

__all__ = ["Moments", "Replications", "Sampled", "sample"]

PATH_STEPS = 30  # of Pathfinder; tuning does the rest
DENSE_SIZE = 64  # largest P with a metric that knows correlations
STRETCHING, FADING = 1.0, 0.6  # first change of log c per unit of acceptance, and how it falls with the iterations
STEP, LENGTH = 1.0, 4.0  # in y: step size times P^(1/4), and the longest trajectory, a bit more than half a turn
ACCEPTED = 0.8


class Sampled(NamedTuple):
    """Draws (R, C, S, P) on the unconstrained scale, and the data sets that could be sampled."""

    v: Float[Tensor, "R C S P"]
    usable: Bool[Tensor, " R"]
    divergent: Float[Tensor, " R"]


@final
class Replications:
    """A density over R x C rows, row ``r C + c`` for chain c of data set r, in coordinates that fit each data set."""

    def __init__(self, density: Density, data: Data, chains: int) -> None:
        self.density, self.data, self.chains = density, data, chains
        self.sets, P = len(tree_leaves(data)[0]), density.size
        like: dict[str, Any] = {"dtype": density.dtype}
        self.centre = torch.zeros(self.sets, chains, P, **like)
        self.root = (
            torch.eye(P, **like).expand(self.sets, P, P) if P <= DENSE_SIZE else torch.ones(self.sets, P, **like)
        )
        self.log_stretch = torch.zeros(self.sets, **like)
        self.plain: Batch | None = None

    @property
    def size(self) -> int:
        """Length P of a row."""
        return self.density.size

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.density.dtype

    @property
    def stretch(self) -> Float[Tensor, "R 1 1"]:
        """Factor c of each data set."""
        return self.log_stretch.exp()[:, None, None]

    def start(self, chains: int, generator: torch.Generator, radius: float = 2.0) -> Float[Tensor, "C P"]:
        """Uniform draws around zero, in the coordinates of the rows as they are now."""
        return self.density.start(chains, generator, radius)

    def bad_site(self, v: Float[Tensor, " P"]) -> str:
        """Words that name the site at fault in the first data set."""
        return self.density.with_arguments(tree_map(lambda value: value[0], self.data)).bad_site(v)

    def batch(
        self,
        wrap: Callable[[Gradient], Callable[..., tuple[Tensor, ...]]],
        examples: Sequence[Tensor],
        *,
        mode: Mode = "auto",
        calls: int = 0,
    ) -> Batch:
        """A function that calls the gradient. The program is one graph; the coordinates, which change, stay outside."""
        if self.plain is None:
            with private_pyro(self.dtype):
                self.plain = build(self._rows, [examples[0]], mode, calls)
        plain = self.plain
        return Batch(wrap(self._in_coordinates), plain.mode, plain.reason, plain.seconds, plain.nodes)

    def unwhitened(self, y: Float[Tensor, "rows P"]) -> Float[Tensor, "rows P"]:
        """Rows on the unconstrained scale of the program."""
        return (self.centre + self.stretch * self._times(y.unflatten(0, (self.sets, self.chains)))).flatten(0, 1)

    def within(self, v: Float[Tensor, "rows P"]) -> Float[Tensor, "rows P"]:
        """Coordinates of rows: the inverse of `unwhitened`."""
        away = (v.unflatten(0, (self.sets, self.chains)) - self.centre) / self.stretch
        if self.root.ndim == 2:
            return (away / self.root[:, None]).flatten(0, 1)
        return torch.linalg.solve_triangular(self.root, away.mT, upper=False).mT.flatten(0, 1).contiguous()

    def stretched(
        self, ensemble: Ensemble, acceptance: Float[Tensor, " rows"], target: float, iteration: int
    ) -> Ensemble:
        """Longer steps for data sets whose chains are accepted more often than wanted, shorter ones for the others."""
        rate = acceptance.nan_to_num(0.0).unflatten(0, (self.sets, self.chains)).mean(1)
        new = self.log_stretch + STRETCHING * (iteration + 1) ** -FADING * (rate - target)
        ratio = (new - self.log_stretch).exp().repeat_interleave(self.chains)[:, None]
        self.log_stretch = new
        return Ensemble(ensemble.v / ratio, ensemble.value, ensemble.gradient * ratio)

    def fit(self, moments: "Moments") -> None:
        """New centres and roots from what was learnt."""
        self.centre, self.root = moments.coordinates(self.centre, self.root)

    def _rows(self, v: Float[Tensor, "rows P"]) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows P"]]:
        """Value and gradient of every row under its own data set."""
        chains = v.unflatten(0, (self.sets, self.chains))
        value, gradient = vmap(self._of_set)(self.data, chains)
        return value.flatten(0, 1), gradient.flatten(0, 1)

    def _of_set(self, data: Data, rows: Float[Tensor, "C P"]) -> tuple[Float[Tensor, " C"], Float[Tensor, "C P"]]:
        with SharedGaps():
            return self.density.with_arguments(data).value_and_grad(rows)

    def _in_coordinates(self, y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = cast(Batch, self.plain)(self.unwhitened(y))
        return value, (self.stretch * self._pulled(gradient.unflatten(0, (self.sets, self.chains)))).flatten(0, 1)

    def _times(self, y: Float[Tensor, "R C P"]) -> Float[Tensor, "R C P"]:
        return y * self.root[:, None] if self.root.ndim == 2 else y @ self.root.mT

    def _pulled(self, gradient: Float[Tensor, "R C P"]) -> Float[Tensor, "R C P"]:
        return gradient * self.root[:, None] if self.root.ndim == 2 else gradient @ self.root


@final
@dataclass
class Moments:
    """Sums over draws (R, C, P) since ``origin``: what centres and roots are made of."""

    origin: Float[Tensor, "R C P"]
    sums: Float[Tensor, "R C P"]
    squares: Tensor
    count: int = 0

    @classmethod
    def empty(cls, origin: Float[Tensor, "R C P"], like: Tensor) -> "Moments":
        """Nothing yet, for roots of the shape of ``like``."""
        return cls(torch.where(torch.isfinite(origin), origin, 0.0), torch.zeros_like(origin), torch.zeros_like(like))

    def learn(self, v: Float[Tensor, "R C P"]) -> None:
        """Take in one draw of every chain; a chain that is lost stays at its origin."""
        moved = torch.where(torch.isfinite(v), v - self.origin, 0.0)
        self.sums = self.sums + moved
        self.squares = self.squares + square(moved, self.squares)
        self.count += 1

    def coordinates(self, centre: Tensor, root: Tensor) -> tuple[Float[Tensor, "R C P"], Tensor]:
        """Centres (of a chain where chains are apart) and roots; the given ones where nothing is known."""
        C, n = self.sums.shape[1], self.count
        if C * n < 3 or n < 2:
            return centre, root
        within = (self.squares - square(self.sums / math.sqrt(n), self.squares)) / (C * (n - 1))
        means = self.origin + self.sums / n
        away = means - means.mean(1, keepdim=True)
        between = square(away, self.squares) / C
        share = diagonal(between, away) / diagonal(within, away).clamp_min(SMALLEST_VARIANCE)
        apart = (share >= APART).any(-1)[:, None, None]
        centre = torch.where(apart, means, means.mean(1, keepdim=True).expand_as(means))
        together = within * (1 - 1 / n) + between
        shape = apart if root.ndim == 3 else apart[..., 0]
        return centre, _root(torch.where(shape, within, together), C * n, root)


def sample(
    density: Density,
    data: Data,
    seed: int,
    *,
    chains: int,
    tune: int,
    draws: int,
    sampler: str,
    target_accept: float | None,
    max_tree_depth: int,
    mode: Mode,
) -> Sampled:
    """Draw from the posterior of every data set, {leaf: (R, *shape)}, by a sampler of :mod:`ppgen.inference.mcmc`."""
    generator = torch.Generator().manual_seed(seed)
    target = Replications(density, data, chains)
    rows = target.sets * chains
    leapfrog = Leapfrog(target, rows, dense=False, mode=mode, calls=(tune + draws) * 8)
    target_accept = ACCEPTED if target_accept is None else target_accept
    engine = Chees(leapfrog, target_accept) if sampler == "chees" else Nuts(leapfrog, target_accept, max_tree_depth)
    with torch.no_grad():
        ensemble, usable = _started(target, leapfrog, generator)
        tuning = first_tuning(leapfrog, Start(ensemble.v))
        tuning.step.log_step = math.log(STEP * density.size**-0.25)
        tuning.trajectory.log_average = math.log(LENGTH)
        ensemble = _tuned(target, engine, ensemble, tuning, tune, generator)
        kept, divergences = ensemble.v.new_empty(draws, rows, density.size), ensemble.v.new_zeros(rows)
        for index in range(draws):
            ensemble, noted = engine.transition(ensemble, tuning, generator, adapt=False)
            tuning.iteration += 1
            kept[index] = target.unwhitened(ensemble.v)
            divergences += noted["diverging"]
    v = kept.movedim(0, 1).unflatten(0, (target.sets, chains))
    return Sampled(
        v, usable & torch.isfinite(v).flatten(1).all(1), (divergences / draws).unflatten(0, (-1, chains)).mean(1)
    )


def _started(
    target: Replications, leapfrog: "Leapfrog[Replications]", generator: torch.Generator
) -> tuple[Ensemble, Bool[Tensor, " R"]]:
    """Every chain at a draw of Pathfinder, in coordinates of its data set; and which data sets have a finite start."""

    def gradient(v: Tensor) -> tuple[Tensor, Tensor]:
        ensemble = leapfrog.at(v)
        return ensemble.value, ensemble.gradient

    shape = (target.sets, target.chains)
    start = pathfinder(
        target, gradient, target.sets * target.chains, generator, groups=target.sets, most_steps=PATH_STEPS
    )
    moments = Moments.empty(start.v.unflatten(0, shape), target.root)
    for draw in (start.v,) if start.draws is None else start.draws:
        moments.learn(draw.unflatten(0, shape))
    target.fit(moments)
    ensemble = leapfrog.at(target.within(start.v))
    return ensemble, torch.isfinite(ensemble.value).unflatten(0, shape).any(1)


def _tuned(
    target: Replications,
    engine: Chees | Nuts,
    ensemble: Ensemble,
    tuning: Tuning,
    tune: int,
    generator: torch.Generator,
) -> Ensemble:  # fmt: skip
    """Learn the coordinates of every data set; give the positions of the chains then."""
    ends, first, shape = window_ends(tune), window_start(tune), (target.sets, target.chains)
    moments = Moments.empty(target.unwhitened(ensemble.v).unflatten(0, shape), target.root)
    since = 0
    for number in range(tune):
        ensemble, noted = engine.transition(ensemble, tuning, generator, adapt=False)
        ensemble = target.stretched(ensemble, noted["acceptance_rate"], engine.target, since)
        tuning.iteration, since = tuning.iteration + 1, since + 1
        if number < first:
            continue
        v = target.unwhitened(ensemble.v)
        moments.learn(v.unflatten(0, shape))
        if tuning.iteration in ends:
            target.fit(moments)
            moments, since = Moments.empty(v.unflatten(0, shape), target.root), 0
            ensemble = engine.leapfrog.at(target.within(v))
    return ensemble


def _root(covariance: Tensor, count: int, previous: Tensor) -> Tensor:
    """Roots of covariances drawn a little to their diagonals; the previous one where there is none."""
    if covariance.ndim == 2:
        found = covariance.clamp_min(SMALLEST_VARIANCE).sqrt()
        return torch.where(torch.isfinite(found), found, previous)
    weight = count / (count + DENSE_SHRINKAGE * covariance.shape[-1])
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(SMALLEST_VARIANCE).diag_embed()
    found, failed = torch.linalg.cholesky_ex(weight * covariance + (1 - weight) * diagonal)
    good = (failed == 0) & torch.isfinite(found).flatten(1).all(1)
    return torch.where(good[:, None, None], found, previous)
