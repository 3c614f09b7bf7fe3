r"""Tuning of a Hamiltonian sampler: step size, metric and trajectory length, learnt from all chains at once.

Chains live in whitened coordinates, :math:`v = L y` with :math:`L L^\top` an estimate of the posterior covariance, or
of its diagonal; momenta are standard normal there. A chain whose density is not finite teaches nothing.

References: Hoffman & Gelman (2014) for dual averaging; Stan Development Team (2024) for the windows; Hoffman, Radul &
Sountsov (2021) for the length of trajectories.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "APART",
    "DENSE_SHRINKAGE",
    "SMALLEST_VARIANCE",
    "Spread",
    "StepSize",
    "Trajectory",
    "Tuning",
    "color",
    "color_gradient",
    "diagonal",
    "pack",
    "square",
    "unpack",
    "whiten",
    "window_ends",
    "window_start",
]

SHRINKAGE, DENSE_SHRINKAGE = 5.0, 2.0  # draws, and draws per dimension, that the prior guess of a metric is worth
SMALLEST_VARIANCE = 1e-20
APART = 2.0  # variance between chains, in units of that within them, from which they are told apart
RATE, DECAY, TINY = 0.025, 0.95, 1e-30  # Adam on the logarithm of the trajectory length
LONGEST_STRIDE = 0.35  # largest change of that logarithm in one iteration
NEWEST_WEIGHT = 0.05  # weight of the newest value in the average that is used in the end


@dataclass
class StepSize:
    """Dual averaging: the step size that a wanted acceptance rate needs."""

    log_step: float
    centre: float = 0.0
    log_average: float = 0.0
    error: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        if self.count == 0:
            self.restart()

    @property
    def now(self) -> float:
        """Step size of the next trajectory while tuning."""
        return math.exp(self.log_step)

    @property
    def final(self) -> float:
        """Averaged step size, for sampling."""
        return math.exp(self.log_average if self.count else self.log_step)

    def restart(self) -> None:
        """Forget the past, start near the present step size."""
        self.log_step = self.log_average if self.count else self.log_step
        self.centre, self.error, self.count = self.log_step + math.log(4.0), 0.0, 0

    def learn(self, acceptance: float, target: float) -> None:
        """Take in one iteration's acceptance rate."""
        self.count += 1
        rate = 1 / (self.count + 10)
        self.error = (1 - rate) * self.error + rate * (target - acceptance)
        self.log_step = self.centre - math.sqrt(self.count) / 0.05 * self.error
        weight = self.count**-0.75
        self.log_average = weight * self.log_step + (1 - weight) * self.log_average


@dataclass
class Spread:
    """Moments of unconstrained draws since ``origin`` (C, P): how many of each chain, their sums, pooled squares.

    Squares are (P,) or (P, P). Chains that are apart from each other, as in modes of a mixture, are told by their
    own scatter; chains that mix, by their common one, which a short window knows better.
    """

    origin: Float[Tensor, "C P"]
    sums: Float[Tensor, "C P"]
    squares: Tensor
    counts: Float[Tensor, " C"]

    @classmethod
    def empty(cls, v: Float[Tensor, "C P"], like: Tensor) -> "Spread":
        """Nothing yet, for chains at ``v`` and a metric of the shape of ``like``."""
        return cls(
            torch.where(torch.isfinite(v), v, 0.0), torch.zeros_like(v), torch.zeros_like(like), v.new_zeros(len(v))
        )

    def learn(self, v: Float[Tensor, "C P"], trusted: Bool[Tensor, " C"]) -> None:
        """Take in one draw of each trusted chain."""
        moved = torch.where(trusted[:, None], v - self.origin, 0.0)
        self.sums = self.sums + moved
        self.squares = self.squares + square(moved, self.squares)
        self.counts = self.counts + trusted

    def factor(self, previous: Tensor) -> Tensor:
        """Cholesky factor (or scale) of the covariance, drawn a little to ``previous``; that where nothing is known."""
        cov, count = self._covariance()
        if cov is None:
            return previous
        if cov.ndim == 1:
            weight = count / (count + SHRINKAGE)
            return (weight * cov + (1 - weight) * previous**2).clamp_min(SMALLEST_VARIANCE).sqrt()
        weight = count / (count + DENSE_SHRINKAGE * len(cov))
        mixed = weight * cov + (1 - weight) * cov.diagonal().clamp_min(SMALLEST_VARIANCE).diag()
        found, failed = torch.linalg.cholesky_ex(mixed)
        return previous if int(failed) or not bool(torch.isfinite(found).all()) else found.contiguous()

    def _covariance(self) -> tuple[Tensor | None, float]:
        """Pooled covariance and the number of draws behind it."""
        known = self.counts > 1
        if not bool(known.any()):
            return None, 0.0
        counts, sums = self.counts[known][:, None], self.sums[known]
        total, chains = float(counts.sum()), len(counts)
        within = (self.squares - square(sums / counts.sqrt(), self.squares)) / (total - chains)
        centres = self.origin[known] + sums / counts
        apart = centres - centres.mean(0)
        between = square(apart * counts.sqrt(), self.squares) / total
        share = diagonal(between, sums) / diagonal(within, sums).clamp_min(SMALLEST_VARIANCE)
        together = chains > 1 and bool((share < APART).all())
        return (within * (1 - chains / total) + between if together else within), total


@dataclass
class Trajectory:
    """Length of a trajectory in whitened units, raised along the gradient of the ChEES criterion by Adam."""

    log_length: float = math.log(2.0)
    square: float = 0.0
    count: int = 0
    log_average: float = math.log(2.0)

    @property
    def now(self) -> float:
        """Length of the next trajectory while tuning, before jitter."""
        return math.exp(self.log_length)

    @property
    def final(self) -> float:
        """Averaged length, for sampling."""
        return math.exp(self.log_average)

    def learn(self, gradient: float, longest: float) -> None:
        """Take in the criterion's derivative by the logarithm of the length; ``longest`` bounds the length."""
        if math.isfinite(gradient):
            self.count += 1
            self.square = DECAY * self.square + (1 - DECAY) * gradient**2
            stride = RATE * gradient / (math.sqrt(self.square / (1 - DECAY**self.count)) + TINY)
            self.log_length += max(-LONGEST_STRIDE, min(LONGEST_STRIDE, stride))
        self.log_length = min(self.log_length, math.log(longest))
        self.log_average += NEWEST_WEIGHT * (self.log_length - self.log_average)


@dataclass
class Tuning:
    """Everything that is learnt, and how many iterations have been made."""

    factor: Tensor
    step: StepSize
    spread: Spread
    trajectory: Trajectory = field(default_factory=Trajectory)
    iteration: int = 0

    def renew(self, v: Float[Tensor, "C P"]) -> None:
        """End a window, with chains at ``v``: its draws give the metric, and the step size starts anew."""
        self.factor = self.spread.factor(self.factor)
        self.spread = Spread.empty(v, self.factor)
        self.step.restart()


def window_ends(tune: int) -> frozenset[int]:
    """Iterations after which the metric is renewed: windows that double, between two phases for the step size."""
    first, last = round(0.075 * tune), round(0.75 * tune)
    ends, end, size = [], first, max(4, round(0.025 * tune))
    while end + 3 * size <= last:
        ends.append(end := end + size)
        size *= 2
    return frozenset([*ends, last]) if last - first >= 4 else frozenset()


def window_start(tune: int) -> int:
    """Iteration from which draws teach the metric."""
    return round(0.075 * tune)


def whiten(v: Float[Tensor, "C P"], factor: Tensor) -> Float[Tensor, "C P"]:
    """Solve ``v = L y`` for each row."""
    if factor.ndim == 1:
        return v / factor
    return torch.linalg.solve_triangular(factor, v.T, upper=False).T


def color(y: Float[Tensor, "C P"], factor: Tensor) -> Float[Tensor, "C P"]:
    """``L y`` for each row."""
    return y * factor if factor.ndim == 1 else y @ factor.T


def color_gradient(gradient: Float[Tensor, "C P"], factor: Tensor) -> Float[Tensor, "C P"]:
    """Gradient by whitened coordinates, ``L' g`` for each row."""
    return gradient * factor if factor.ndim == 1 else gradient @ factor


def pack(value: object, name: str = "") -> dict[str, Tensor]:
    """A dataclass of numbers, tensors and such dataclasses as named tensors."""
    if is_dataclass(value):
        parts = [pack(getattr(value, part.name), f"{name}/{part.name}") for part in fields(value)]
        return {key: tensor for part in parts for key, tensor in part.items()}
    if isinstance(value, Tensor):
        return {name: value}
    return {name: torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)}


def unpack(like: Any, tensors: dict[str, Tensor], name: str = "") -> Any:  # noqa: ANN401 (the type of ``like``)
    """Undo `pack`, into the form of ``like``."""
    if is_dataclass(like):
        parts = {part.name: unpack(getattr(like, part.name), tensors, f"{name}/{part.name}") for part in fields(like)}
        made = object.__new__(type(like))
        for key, value in parts.items():
            object.__setattr__(made, key, value)
        return made
    return tensors[name] if isinstance(like, Tensor) else tensors[name].item()


def square(rows: Float[Tensor, "*B C P"], like: Tensor) -> Tensor:
    """Sum over chains of outer products (*B, P, P), or of squares (*B, P), whichever ``like`` is."""
    return rows.mT @ rows if like.ndim == rows.ndim else (rows * rows).sum(-2)


def diagonal(squares: Tensor, rows: Float[Tensor, "*B C P"]) -> Float[Tensor, "*B P"]:
    """Variances among what `square` made of such rows."""
    return squares.diagonal(dim1=-2, dim2=-1) if squares.ndim == rows.ndim else squares
