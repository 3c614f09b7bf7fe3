r"""Raise a named guide to the top of its bound over fixed draws, and say when it is there.

L-BFGS climbs in a frame in which the guide is a standard normal; every few steps the frame moves to where the guide
is. There the gradient by its parameters is the natural one, up to a factor: by a mean in units of the guide's own
standard deviation, by a width relatively. The run has settled when every entry is small, whatever the data's scale.

A rough guide is found by few draws, and by growing parts of the rows where the data can be split; it is the start for
all of them. The end is judged by draws that were not climbed: where their gradient says that the mean or the width
would move, the run goes on with more draws.

A point has no width. Its unit is what the curvature climbed so far says of the posterior's: the run has settled when
the top is a small part of that away.

References: Burroni, Domke & Sheldon (2024) and Giordano, Ingram & Broderick (2024) for fixed draws; Amari (1998) for
the natural gradient.
"""

import logging
import math
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppgen.errors import FitError
from ppgen.inference.ascent import Ascent, Pair, dot
from ppgen.inference.svi.fixed_draws import FixedDraws, matched_normals
from ppgen.inference.svi.guides import FlatGuide, FullRank, LowRank, NormalGuide, Point
from ppgen.inference.svi.identity import checkpoint_of
from ppgen.programs.parameters import Parameters

__all__ = ["Climb", "first_draws"]

FRAME_STEPS, MOST_PAIRS = 20, 20  # L-BFGS steps before the frame moves, and those it remembers
SETTLED = 1e-5  # largest entry of the natural gradient at the end
SETTLED_BY_ROUNDING = 1e-3  # and there, if rounding hides any further gain
ROUGH = 0.05  # and of a part of the rows, or of few draws
ROUNDING = 1e-12  # relative gain that is rounding
FLAT, PATIENCE = 1e-3, 3  # nats a frame, and frames in a row, after which a guide with redundant parameters has settled
GROWTH, FIRST_ROWS = 8, 1000  # of the parts of the rows
ROUGH_DRAWS, FINE_DRAWS, MOST_DRAWS = 16, 64, 1024
ERROR, WORST = 0.03, 3  # root mean square of the natural gradient over fresh draws that will do; its largest entry's
HISTORY = ("elbo", "gradient_norm", "draws", "rows")

log = logging.getLogger(__name__)


def first_draws(guide: FlatGuide) -> int:
    """Draws to begin with: a full covariance needs more of them than it has columns."""
    if not guide.noise_size:
        return 1
    return max(ROUGH_DRAWS, 2 ** math.ceil(math.log2(4 * guide.size)) if isinstance(guide, FullRank) else 0)


@final
class Climb:
    """A run under way; it answers like :class:`ppgen.inference.svi.training.Run`.

    Parameters
    ----------
    bound : over fixed draws.
    parameters : trained parameters, all of one type; they keep their values until `finish`.
    identity : identity of the run; a checkpoint of another is refused.
    """

    def __init__(
        self, bound: FixedDraws, parameters: Parameters, guide: FlatGuide, *, max_steps: int, seed: int, identity: str
    ) -> None:
        self.bound, self.parameters, self.guide = bound, parameters, guide
        self.max_steps, self.identity = max_steps, identity
        self.parts = _parts(bound)
        self.stage, self.sets, self.draws = 0, 0, first_draws(guide)
        self.records: list[tuple[float, ...]] = []
        self.converged, self.stuck, self.quiet, self.gained, self.error = False, 0, 0, 0.0, math.nan
        self._seed(seed)
        self.up = self._framed()

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.records)

    @property
    def over(self) -> bool:
        """True if there is no step left to make."""
        return self.steps >= self.max_steps or self.converged or self.stuck > 2

    @property
    def elbo(self) -> float:
        """The newest bound."""
        return float(self.up.value)

    @property
    def whole(self) -> bool:
        """True if all rows are climbed, by enough draws."""
        return self.stage == len(self.parts) - 1 and (self.draws == 1 or self.draws >= FINE_DRAWS)

    def step(self) -> None:
        """One step of L-BFGS, and after some of them a new frame."""
        gain = float(self.up.step(self._value_and_grad))
        self.gained += gain
        norm = float(self.up.gradient.norm())
        self.records.append((float(self.up.value), norm, float(self.draws), float(self.parts[self.stage])))
        if len(self.up.pairs) >= FRAME_STEPS or gain <= self._least_gain():
            self._move()

    def finish(self) -> None:
        """Give the parameters their final values."""
        self.put()
        self.warn()

    def put(self) -> None:
        """Give the parameters the present values."""
        self.parameters.store([self.up.v[0]])

    def warn(self) -> None:
        """Say in the log where a point has no density to be the largest of."""
        if isinstance(self.guide, Point) and self.over and not self.converged:
            log.warning(
                "svi: the density must have a maximum, after %d steps it still rises%s; if it has none (as where a "
                'scale goes to zero), write a prior that falls there, or use guide="mean_field" or mcmc.fit; else '
                "raise max_steps",
                self.steps,
                self.guide.farthest(),
            )

    def history(self) -> pd.DataFrame:
        """Step, bound in nats over the draws and rows of that step, norm of its gradient, draws, rows."""
        table = pd.DataFrame(np.asarray(self.records).reshape(-1, len(HISTORY)), columns=list(HISTORY))
        table.insert(0, "step", np.arange(1, self.steps + 1))
        return table.astype({"draws": int, "rows": int})

    def words(self) -> dict[str, Any]:
        """Attributes of a fit that say what was done."""
        done = {"converged": self.converged, "optimizer": "L-BFGS over fixed draws", "particles": self.draws}
        return {**done, "restart_elbos": [self.elbo]}

    def _seed(self, seed: int) -> None:
        self.seed = seed
        self.noise = self._numbers()

    def _numbers(self) -> Tensor:
        """Standard normal numbers of the present set of draws."""
        stream = np.random.SeedSequence([self.seed, self.sets]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(stream >> 2))
        like = self.guide.centre
        if self.draws == 1:
            return torch.zeros(1, 0, dtype=like.dtype, device=like.device)
        return matched_normals(self.draws, self.guide.noise_size, generator, dtype=like.dtype, device=like.device)

    def _value_and_grad(self, v: Tensor) -> tuple[Tensor, Tensor]:
        value, (gradient,) = self.bound.value_and_grad([v[0]], self.noise, self.parts[self.stage])
        good = torch.isfinite(value) & torch.isfinite(gradient).all()
        return torch.where(good, value, -math.inf)[None], gradient[None]

    def _framed(self) -> Ascent:
        """Ascent in the guide's own frame, from where it is."""
        if isinstance(self.guide, NormalGuide):
            self.guide.settle()
        (vector,) = self.parameters.flat()
        value, gradient = self._value_and_grad(vector[None])
        return Ascent(vector[None], value, gradient, MOST_PAIRS)

    def _move(self) -> None:
        """Move the frame to where the guide is; when it has settled, go on to more rows, other draws, or the end."""
        self.put()
        before, self.up = self.up, self._framed()
        framed = self._of_guide() if isinstance(self.guide, NormalGuide) else torch.zeros_like(self._of_guide())
        self.up.diagonal[:, ~framed] = before.diagonal[:, ~framed]
        last = self.whole
        flat = self.gained <= self._least_gain()
        self.stuck = self.stuck + 1 if flat else 0
        self.quiet = self.quiet + 1 if self.gained <= FLAT else 0
        self.gained = 0.0
        small = ROUGH if not last else SETTLED_BY_ROUNDING if flat else SETTLED
        if last and isinstance(self.guide, LowRank | Point) and self.quiet >= PATIENCE:
            small = ERROR
        if self._natural(before) <= small:
            self._settled(last)

    def _least_gain(self) -> float:
        """Nats that are more than rounding; in the rough, more than a mean or a width would notice."""
        return max(ROUNDING * (1 + abs(float(self.up.value))), 0.0 if self.whole else FLAT)

    def _settled(self, last: bool) -> None:
        """Go on with more rows, more draws, or come to the end."""
        if self.stage < len(self.parts) - 1:
            self.stage += 1
        elif not last:
            self._take(FINE_DRAWS)
        elif not self._needs_more_draws():
            self.converged = True
            return
        self.stuck = self.quiet = 0
        self.up = self._framed()

    def _take(self, draws: int) -> None:
        """A new set of draws."""
        self.sets, self.draws = self.sets + 1, draws
        self.noise = self._numbers()

    def _needs_more_draws(self) -> bool:
        """Tell whether draws that were not climbed would move the guide; then as many are taken as will do."""
        if not isinstance(self.guide, NormalGuide):
            return False
        climbed = self.noise
        self._take(self.draws)
        gradient = self._value_and_grad(self.up.v)[1][0]
        found = gradient[self._of_guide()].abs()
        self.error = max(float(found.square().mean().sqrt()), float(found.max()) / WORST)
        needed = 2 ** math.ceil(math.log2(self.draws * (self.error / ERROR) ** 2)) if self.error > ERROR else 0
        if min(needed, MOST_DRAWS) <= self.draws:
            self.noise = climbed
            return False
        self._take(min(needed, MOST_DRAWS))
        return True

    def _of_guide(self) -> Tensor:
        """Mark the entries of the flat vector that belong to the named guide."""
        ids = {id(value) for value in self.guide.parameters()}
        leaves = self.parameters.leaves.values()
        return torch.cat([torch.full((leaf.numel(),), id(leaf) in ids) for leaf in leaves])

    def _natural(self, before: Ascent) -> float:
        """Largest entry of the natural gradient; of a point its length, by the curvature met ``before`` the move."""
        if isinstance(self.guide, Point):
            return math.sqrt(max(0.0, float(dot(before.times(before.gradient), before.gradient))))
        if not isinstance(self.guide, NormalGuide):
            return 0.0  # a Laplace guide ends by Newton steps of its own
        return float(self.up.gradient[0, self._of_guide()].abs().max())

    def save(self, path: Path | None) -> None:
        """Write a checkpoint, where there is a place for it."""
        if path is None:
            return
        frame = self.guide.frame if isinstance(self.guide, NormalGuide) else {}
        tensors = {f"up/{name}": getattr(self.up, name) for name in ("v", "value", "gradient", "diagonal")}
        tensors |= {f"frame/{name}": value for name, value in frame.items()}
        tensors |= {
            f"pair/{i}/{name}": value for i, pair in enumerate(self.up.pairs) for name, value in pair._asdict().items()
        }
        tensors["records"] = torch.tensor(self.records, dtype=torch.float64).reshape(-1, len(HISTORY))
        state = {name: getattr(self, name) for name in STATE}
        checkpoint_of(path, self.identity).save(tensors, {"pairs": len(self.up.pairs), **state})

    def resume(self, path: Path | None) -> None:
        """Go on from a checkpoint, if there is one.

        Raises
        ------
        FileError : it cannot be trusted, or holds another fit.
        """
        saved = None if path is None else checkpoint_of(path, self.identity).load()
        if saved is None:
            return
        content, tensors = saved
        for name in STATE:
            setattr(self, name, content[name])
        self._seed(self.seed)
        self.records = [tuple(row) for row in tensors["records"].tolist()]
        if isinstance(self.guide, NormalGuide):
            for name, value in self.guide.frame.items():
                value.copy_(tensors[f"frame/{name}"])
        pairs = [Pair(*(tensors[f"pair/{i}/{name}"] for name in Pair._fields)) for i in range(content["pairs"])]
        self.up = Ascent(tensors["up/v"], tensors["up/value"], tensors["up/gradient"], MOST_PAIRS, pairs)
        self.up.diagonal = tensors["up/diagonal"]

    @property
    def is_finite(self) -> bool:
        """True if the bound is finite where the climb stands."""
        return math.isfinite(self.elbo)

    def check(self) -> None:
        """Refuse a start at which the bound is not finite.

        Raises
        ------
        FitError : it is not, with the site at fault.
        """
        if not self.is_finite:
            _, declared = self.parameters.split(self.parameters.flat())
            site = self.bound.objective.bad_site(self.bound.task.args, self.bound.task.kwargs, declared)
            where = f' (site "{site}")' if site else ""
            raise FitError(
                f"svi: the bound must be finite where the guide starts, but it is not{where}; scale the data to about "
                "unit variance, or tighten the priors"
            )


STATE = ("seed", "stage", "sets", "draws", "converged", "stuck", "quiet", "gained", "error")


def _parts(bound: FixedDraws) -> list[int]:
    """Rows of each part that is climbed in turn, all of them at last."""
    total = bound.task.rows
    if bound.whole:
        return [total]
    parts, rows = [], max(bound.group, FIRST_ROWS)
    while rows < total:
        parts.append(rows)
        rows *= GROWTH
    return [*parts, total]
