"""The common part of Hamiltonian samplers: positions of the chains, the leapfrog step as one graph, a draw's record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppgen.inference.mcmc.adaptation import color, color_gradient
from ppgen.programs.density import Gradient
from ppgen.programs.tracing import Batch, Mode, compiled

__all__ = ["DIVERGENCE", "NAMES", "Ensemble", "Leapfrog", "Record", "Target", "record"]

DIVERGENCE = 1000.0  # nats of energy that a trajectory may be off

NAMES = ("lp", "energy", "acceptance_rate", "diverging", "n_steps", "step_size")

Record = dict[str, Tensor]
"""What is noted of one draw of every chain, {name: (C,)}, by ArviZ's names."""


@runtime_checkable
class Target(Protocol):
    """A density over rows of P numbers, as samplers use it; :class:`~ppgen.programs.density.Density` is one.

    Each row may have a density of its own, as where many data sets are sampled at once.
    """

    @property
    def size(self) -> int:
        """Length P of a row."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""

    def start(self, chains: int, generator: torch.Generator, radius: float = 2.0) -> Float[Tensor, "C P"]:
        """Points drawn at random around zero."""

    def batch(
        self,
        wrap: Callable[[Gradient], Callable[..., tuple[Tensor, ...]]],
        examples: Sequence[Tensor],
        *,
        mode: Mode = "auto",
        calls: int = 0,
    ) -> Batch:
        """A function of tensors that calls the gradient, as one graph."""

    def bad_site(self, v: Float[Tensor, " P"]) -> str:
        """Words that name the site at fault where the density is not finite."""


D = TypeVar("D", bound=Target)


@final
@dataclass(frozen=True, eq=False)
class Ensemble:
    """Positions of the chains: unconstrained vectors, log densities, gradients by whitened coordinates."""

    v: Float[Tensor, "C P"]
    value: Float[Tensor, " C"]
    gradient: Float[Tensor, "C P"]

    def moved(self, accepted: Bool[Tensor, " C"], end: "Ensemble") -> "Ensemble":
        """The chains that accepted are at ``end``."""
        row = accepted[:, None]
        return Ensemble(
            torch.where(row, end.v, self.v),
            torch.where(accepted, end.value, self.value),
            torch.where(row, end.gradient, self.gradient),
        )


@final
class Leapfrog(Generic[D]):
    """Leapfrog steps of all chains: gradient and update in one graph, traced or compiled once.

    ``dense`` fixes whether the metric is a matrix. ``calls`` is how many steps are expected; where that becomes known
    only later, `reconsider` takes it. ``steps`` counts those that were made.
    """

    def __init__(self, density: D, chains: int, *, dense: bool, mode: Mode, calls: int) -> None:
        self.density, self.chains, self.steps = density, chains, 0
        P = density.size
        v = density.start(chains, torch.Generator().manual_seed(0))
        like: dict[str, Any] = {"dtype": density.dtype, "device": v.device}
        self.identity = torch.eye(P, **like) if dense else torch.ones(P, **like)
        self.examples = [v, torch.zeros_like(v), torch.zeros_like(v), torch.ones(chains, 1, **like), self.identity]
        self.batch: Batch = density.batch(_step, self.examples, mode=mode, calls=calls)
        self.weighed = 0.0
        self.open = mode == "auto" and self.batch.mode == "traced" and self.batch.work is not None

    def reconsider(self, calls: float) -> None:
        """Compile now if so many calls still to come would pay for it, and nothing was decided by the user."""
        if not self.open or self.batch.work is None:
            return
        reason = self.batch.work.words(calls)
        if self.batch.work.pays(calls):
            self.compile(reason)
        elif calls > self.weighed:  # the most that was ever expected is what speaks for compiling, and is said
            self.batch, self.weighed = replace(self.batch, reason=reason), calls

    def compile(self, reason: str) -> None:
        """Compile the step, for this ``reason``; the choice is made then, even where torch cannot."""
        self.batch = compiled(self.batch, self.examples, reason)
        self.open = False

    def at(self, v: Float[Tensor, "C P"], factor: Tensor | None = None) -> Ensemble:
        """Density and gradient at ``v``, without a step; ``factor`` None leaves coordinates as they are."""
        v = v.contiguous()
        still = torch.zeros_like(v)
        factor = self.identity if factor is None else factor
        v, _, value, gradient = self.batch(v, still, still, still.new_zeros(len(v), 1), factor)
        return Ensemble(v, value, gradient)

    def __call__(
        self, ensemble: Ensemble, momentum: Float[Tensor, "C P"], step: float | Tensor, steps: int, factor: Tensor
    ) -> tuple[Ensemble, Float[Tensor, "C P"]]:
        """``steps`` steps of size ``step`` (one, or (C, 1), negative for backwards): where they end, and how fast."""
        size = step if isinstance(step, Tensor) else momentum.new_full((len(momentum), 1), step)
        v, value, gradient = ensemble.v, ensemble.value, ensemble.gradient
        self.steps += steps
        with torch.no_grad():
            for _ in range(steps):
                v, momentum, value, gradient = self.batch.run(v, momentum, gradient, size, factor)
        return Ensemble(v, value, gradient), momentum


def record(
    ensemble: Ensemble, energy: Tensor, acceptance: Tensor, diverging: Tensor, steps: int | Tensor, step: float
) -> Record:
    """The common part of a record."""
    like = ensemble.value
    return {
        "lp": like,
        "energy": energy,
        "acceptance_rate": acceptance,
        "diverging": diverging,
        "n_steps": steps if isinstance(steps, Tensor) else torch.full_like(like, steps, dtype=torch.int64),
        "step_size": torch.full_like(like, step),
    }


def _step(gradient_of: Gradient) -> Any:  # noqa: ANN401 (a function of five tensors)
    def step(
        v: Tensor, momentum: Tensor, gradient: Tensor, size: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = momentum + 0.5 * size * gradient
        v = v + size * color(half, factor)
        value, slope = gradient_of(v)
        gradient = color_gradient(slope, factor)
        return v.contiguous(), (half + 0.5 * size * gradient).contiguous(), value, gradient.contiguous()

    return step
