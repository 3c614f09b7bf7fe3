r"""ChEES-HMC: many chains in one tensor, with one step size, metric and trajectory length learnt from all of them.

Each iteration, every chain follows the same number of leapfrog steps, its length jittered by a Halton sequence. The
length is raised along the gradient of the *change in the estimator of the expected square*,

.. math::
    \mathrm{ChEES} = \tfrac14 \mathrm E\left[ (\|y' - \mathrm E y'\|^2 - \|y - \mathrm E y\|^2)^2 \right],

in whitened coordinates y; the step size keeps the harmonic mean of the acceptance rates at its target.

References: Hoffman, Radul & Sountsov (2021); Owen (2017) for the sequence.
"""

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.inference.mcmc.adaptation import Tuning, whiten
from ppgen.inference.mcmc.hamiltonian import DIVERGENCE, NAMES, Ensemble, Leapfrog, Record, record

__all__ = ["Chees"]

TARGET = 0.651  # harmonic mean of acceptance rates; the best rate in many dimensions (Beskos et al. 2013)
JITTER = 1.0  # share of the trajectory length that is jittered
LEAPFROGS = 1000  # at most so many steps a trajectory
LOWEST = 1e-10  # acceptance that the harmonic mean still tells from none


@final
class Chees:
    """One transition of every chain. It keeps no state: positions of chains and tuning are passed in."""

    names: ClassVar[tuple[str, ...]] = NAMES

    def __init__(self, leapfrog: Leapfrog, target: float | None = None, most_leapfrogs: int = LEAPFROGS) -> None:
        self.leapfrog, self.most_leapfrogs = leapfrog, most_leapfrogs
        self.target = TARGET if target is None else target

    def transition(
        self, ensemble: Ensemble, tuning: Tuning, generator: torch.Generator, *, adapt: bool
    ) -> tuple[Ensemble, Record]:
        """Move every chain once; while ``adapt``, learn from it."""
        step = tuning.step.now if adapt else tuning.step.final
        length = tuning.trajectory.now if adapt else tuning.trajectory.final
        time = length * (1 - JITTER + JITTER * halton(tuning.iteration + 1))
        steps = min(self.most_leapfrogs, max(1, math.ceil(time / step)))
        momentum = torch.randn(ensemble.v.shape, generator=generator, dtype=ensemble.v.dtype, device=ensemble.v.device)
        uniform = torch.rand(len(ensemble.v), generator=generator, dtype=ensemble.v.dtype, device=ensemble.v.device)
        end, last = self.leapfrog(ensemble, momentum, step, steps, tuning.factor)
        before = 0.5 * momentum.square().sum(-1) - ensemble.value
        after = 0.5 * last.square().sum(-1) - end.value
        gain = torch.nan_to_num(before - after, nan=-math.inf, posinf=-math.inf)
        acceptance = gain.clamp_max(0.0).exp()
        accepted = uniform < acceptance
        if adapt:
            self._learn(ensemble, end, last, acceptance, time, tuning)
        energy = torch.where(accepted, after, before)
        new = ensemble.moved(accepted, end)
        return new, record(new, energy, acceptance, gain < -DIVERGENCE, steps, step)

    def _learn(
        self,
        ensemble: Ensemble,
        end: Ensemble,
        last: Tensor,
        acceptance: Float[Tensor, " C"],
        time: float,
        tuning: Tuning,
    ) -> None:
        """Step size and trajectory length; one look at the device for both."""
        trusted = torch.isfinite(ensemble.value)
        harmonic = trusted.sum() / (trusted / acceptance.clamp_min(LOWEST)).sum()
        slope = _slope(ensemble, end, last, torch.where(trusted, acceptance, 0.0), tuning.factor) * time
        rate, gradient = torch.stack([harmonic, slope]).tolist()
        if math.isfinite(rate):
            tuning.step.learn(rate, self.target)
        tuning.trajectory.learn(gradient, self.most_leapfrogs * tuning.step.now)


def _slope(
    ensemble: Ensemble, end: Ensemble, last: Tensor, weight: Float[Tensor, " C"], factor: Tensor
) -> Float[Tensor, ""]:
    """Derivative of the criterion by time, averaged over chains by their acceptance."""
    good = (weight > 0)[:, None]
    start, stop = (torch.where(good, whiten(e.v, factor), 0.0) for e in (ensemble, end))
    last = torch.where(good, last, 0.0)
    total = weight.sum()
    start = start - start.sum(0) / good.sum()
    stop = stop - (weight[:, None] * stop).sum(0) / total
    change = stop.square().sum(-1) - start.square().sum(-1)
    return (weight * change * (stop * last).sum(-1)).sum() / total


def halton(index: int) -> float:
    """Element ``index`` (from 1) of the Halton sequence of base 2, in (0, 1)."""
    value, share = 0.0, 0.5
    while index:
        index, bit = divmod(index, 2)
        value += bit * share
        share /= 2
    return value
