"""Stochastic gradient steps on a bound: batches, optimiser, learning rate, early stopping, and checkpoints.

The bound of a step is noisy. So every window of steps ends with a look at the mean of its parameters: their bound of
the same rows by the same random numbers each time, whose differences carry little noise. The learning rate falls when
that bound has stopped rising, or when the steps run short. The mean of the last window is given back; where held-out
rows decide, the best.

The random numbers of a step depend on the seed and the number of the step alone, so that a run goes on from a
checkpoint as if it had not stopped.

References: Kingma & Ba (2015); Polyak & Juditsky (1992) and Shamir & Zhang (2013) for the average of the iterates.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppgen.errors import FitError
from ppgen.inference.svi.identity import checkpoint_of
from ppgen.inference.svi.optimizers import (
    DECAYS,
    learning_rate,
    natural_rate,
    optimizer_of,
    put_together,
    take_apart,
    views_needed,
)
from ppgen.inference.svi.options import Options
from ppgen.inference.svi.parallel import Group
from ppgen.programs.parameters import Parameters
from ppgen.rng import seed_device

__all__ = ["Gradient", "Run"]

WINDOW = 200  # steps whose mean parameters are looked at
NATURAL_WINDOW, EXACT_WINDOW = 10, 5  # and where all go along natural gradients: with some noise, and without
LATEST = (0.6, 0.85)  # share of all steps after which the rate has fallen so often, if the bound still rises
PATIENCE = 3  # windows without progress in a row that end a run, or that the learning rate falls after
RISE = 0.002  # nats, times the root of the latent numbers, that are progress
SETBACKS = 5  # times that a run may go back to good parameters
CLIP, CLIPPED = 10.0, 100  # times the median norm of so many gradients that a gradient may be long, by default
AVERAGING = 3  # power of the step's number that an iterate weighs in the average
KEPT = ("flat", "average", "mean", "best", "good")  # parameters that a checkpoint holds
BASELINE_WEIGHT = 0.1  # of the newest value in a running baseline

log = logging.getLogger(__name__)

Gradient = Callable[..., Sequence[Tensor]]
"""(flat parameters..., baselines, rows' data...) -> bound, new baselines, gradients of minus the bound."""


@final
@dataclass
class Progress:
    """Everything that a run has recorded and decided so far."""

    bounds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    decays: int = 0
    stalled: int = 0
    setbacks: int = 0
    converged: bool = False


@final
class Run:
    """A run under way.

    Parameters
    ----------
    gradient : see `Gradient`.
    parameters : trained parameters; they keep their values until `finish`.
    batches : given a seed, what ``gradient`` is given at each step beside parameters and baselines.
    evaluate : the bound at flat parameters, always of the same rows and by the same random numbers; None where no
        decision hangs on it.
    held_out : true if those rows are held out.
    local : true if rows have latent values of their own, whose noise differs between processes.
    rise : nats of that bound that are progress.
    fault : says at which site the bound of a batch is not finite, in words for a message.
    identity : identity of the run; a checkpoint of another is refused.
    """

    def __init__(
        self,
        gradient: Gradient,
        parameters: Parameters,
        options: Options,
        batches: Callable[[int], Callable[[int], Sequence[Tensor]]],
        evaluate: Callable[[Sequence[Tensor]], float] | None,
        fault: Callable[[Sequence[Tensor], Sequence[Tensor]], str],
        *,
        held_out: bool,
        local: bool,
        rise: float,
        scored: int,
        max_steps: int,
        seed: int,
        group: Group,
        identity: str,
    ) -> None:
        self.gradient, self.parameters, self.options = gradient, parameters, options
        self.batches = batches
        self.evaluate, self.fault, self.max_steps, self.group = evaluate, fault, max_steps, group
        self.held_out, self.local, self.rise, self.identity = held_out, local, rise, identity
        self._seed(seed)
        self.flat = parameters.flat()
        group.copy_first(*self.flat)
        self.baselines = torch.zeros(scored, dtype=self.flat[0].dtype, device=self.flat[0].device)
        self.average = [vector.clone() for vector in self.flat]
        self.mean = [vector.clone() for vector in self.flat]  # of the present window
        self.best = [vector.clone() for vector in self.flat]
        self.good = [vector.clone() for vector in self.flat]  # what a run goes back to
        self.natural = [vector for vector, apart in zip(self.flat, parameters.are_apart, strict=True) if apart]
        self.trained, self.pieces = self._trained()
        self.optimizer = optimizer_of(self.options, self.trained)
        self.progress = Progress()

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.progress.bounds)

    @property
    def window(self) -> int:
        """Steps between two looks: few where each goes along the natural gradient alone, for such steps are large."""
        return WINDOW if self.trained else EXACT_WINDOW if self.exact else NATURAL_WINDOW

    @property
    def exact(self) -> bool:
        """True if steps are those of coordinate ascent, without noise."""
        return not self.trained and self.options.batch_size is None

    @property
    def elbo(self) -> float:
        """The newest bound."""
        return self.progress.bounds[-1]

    @property
    def over(self) -> bool:
        """True if there is no step left to make."""
        return self.steps >= self.max_steps or (self.options.early_stopping and self.progress.converged)

    def step(self) -> None:
        """One step of the optimiser, or back to the last good parameters where it cannot be made.

        Raises
        ------
        FitError : the bound or a gradient is not finite, again and again.
        """
        rate = self._rate() if self.trained else self._natural_rate()
        for part in self.optimizer.param_groups:
            part["lr"] = rate
        found: list[float] = []
        try:
            self.optimizer.step(lambda: self._closure(found))
        except _NotFinite as error:
            self._go_back(error)
            return
        with torch.no_grad():
            for vector in self.natural:
                vector.sub_(cast(Tensor, vector.grad), alpha=self._natural_rate())
        progress = self.progress
        progress.bounds.append(found[0])
        progress.norms.append(found[1])
        progress.rates.append(rate)
        if self.options.averaging:
            weight = (AVERAGING + 1) / (self.steps + AVERAGING)
            for mean, vector in zip(self.average, self.flat, strict=True):
                mean.lerp_(vector, weight)
        if self.evaluate is not None:
            for mean, vector in zip(self.mean, self.flat, strict=True):
                mean.lerp_(vector.detach(), 1 / ((self.steps - 1) % self.window + 1))
        if self.steps % self.window == 0:
            for kept, vector in zip(self.good, self.flat, strict=True):
                kept.copy_(vector.detach())
            if self.evaluate is not None:
                self._decide(self.evaluate)

    def finish(self) -> None:
        """Give the parameters their final values: those of the last look, the best on held-out rows, or the last."""
        self.parameters.store(self._final())

    def history(self) -> pd.DataFrame:
        """Step, bound in nats (an estimate), norm of the gradient, learning rate, and the bound of each look."""
        progress = self.progress
        table = pd.DataFrame(
            {
                "step": np.arange(1, self.steps + 1),
                "elbo": progress.bounds,
                "gradient_norm": progress.norms,
                "lr": progress.rates,
            }
        )
        if self.evaluate is not None:
            name = "held_out" if self.held_out else "fixed_elbo"
            table[name] = np.nan
            for step, value in progress.looks:
                table.loc[step - 1, name] = value
        return table

    def words(self) -> dict[str, Any]:
        """Attributes of a fit that say what was done."""
        make = self.options.optimizer
        kind = make.func if isinstance(make, functools.partial) else make or torch.optim.Adam
        converged = self.progress.converged if self.options.early_stopping else None
        names = ["natural gradients"] if self.natural else []
        names += [getattr(kind, "__name__", type(kind).__name__)] if self.trained else []
        return {"converged": converged, "optimizer": " and ".join(names)}

    def save(self, path: Path | None) -> None:
        """Write a checkpoint, where there is a place for it."""
        if path is None or not self.group.first:
            return
        progress = self.progress
        lists = {name: value for name, value in vars(progress).items() if isinstance(value, list)}
        tensors = {f"progress/{name}": torch.tensor(value, dtype=torch.float64) for name, value in lists.items()}
        for name in KEPT:
            tensors |= {f"{name}/{i}": vector.detach() for i, vector in enumerate(getattr(self, name))}
        tensors["baselines"] = self.baselines
        state = self.optimizer.state_dict()["state"]
        content = {
            "seed": self.seed,
            "optimizer": take_apart(state, "optimizer", tensors),
            **{name: value for name, value in vars(progress).items() if name not in lists},
        }
        checkpoint_of(path, self.identity).save(tensors, content)

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
        self._seed(content["seed"])
        with torch.no_grad():
            for name in KEPT:
                for i, vector in enumerate(getattr(self, name)):
                    vector.copy_(tensors[f"{name}/{i}"])
            self.baselines.copy_(tensors["baselines"])
        lists: dict[str, Any] = {name: tensors[f"progress/{name}"].tolist() for name in ("bounds", "norms", "rates")}
        looks = [(int(step), value) for step, value in tensors["progress/looks"].reshape(-1, 2).tolist()]
        rest = {name: content[name] for name in ("decays", "stalled", "setbacks", "converged")}
        self.progress = Progress(**lists, looks=looks, **rest)
        groups = self.optimizer.state_dict()["param_groups"]
        state = put_together(content["optimizer"], tensors)
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _seed(self, seed: int) -> None:
        """Streams of this seed for the batches and for the noise: those of seeds next to each other share nothing."""
        self.seed = seed
        self.noise, rows = (int(n) for n in np.random.SeedSequence(seed).generate_state(2, np.uint64) >> 2)
        self.batch = self.batches(rows)

    def _trained(self) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors for the optimiser: the flat vectors if it treats all entries alike, else views with their shapes."""
        vectors = [vector for vector, apart in zip(self.flat, self.parameters.are_apart, strict=True) if not apart]
        if not views_needed(self.options):
            return vectors, []
        named = self.parameters.named(self.flat)
        views = [value for name, value in named.items() if name not in self.parameters.apart]
        return views, views

    def _go_back(self, error: "_NotFinite") -> None:
        """To the last good parameters, with an optimiser that remembers nothing and a smaller rate."""
        if self.progress.setbacks >= SETBACKS:
            raise FitError(str(error))
        self.progress.setbacks += 1
        with torch.no_grad():
            for vector, kept in zip(self.flat, self.good, strict=True):
                vector.copy_(kept)
        self.optimizer = optimizer_of(self.options, self.trained)
        what = str(error).split(";")[0]
        log.warning("%s; gone back to the last good parameters, on with a rate of %.2g", what, self._rate())

    def _longest(self) -> float:
        """Norm that longer gradients are shortened to."""
        norms = self.progress.norms[-CLIPPED:]
        if self.options.clip is not None or self.options.optimizer is not None or len(norms) < CLIPPED // 4:
            return math.inf if self.options.clip is None else self.options.clip
        return CLIP * float(np.median(norms))

    def _closure(self, found: list[float]) -> float:
        """Gradients of a step's batch, into what the optimiser is given; the loss."""
        step = self.steps
        number = step * self.group.size + self.group.rank if self.local else step
        seed_device(self.noise + number, self.flat[0].device)
        batch = self.batch(step)
        with torch.no_grad():
            flat = [vector.detach() for vector in self.flat]
            bound, baselines, *gradients = self.gradient(*flat, self.baselines, *batch)
            self.group.mean(bound, baselines, *gradients)
            apart = self.parameters.are_apart
            norms = [torch.linalg.vector_norm(g).double() for g, own in zip(gradients, apart, strict=True) if not own]
            norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else bound.new_zeros(())
            value, size = torch.stack([bound, norm.to(bound.dtype)]).tolist()
            if not math.isfinite(value) or not all(bool(torch.isfinite(part).all()) for part in gradients):
                raise self._error(value, gradients)
            if size > (longest := self._longest()):
                ratio = longest / size
                gradients = [g if own else g * ratio for g, own in zip(gradients, apart, strict=True)]
            weight = BASELINE_WEIGHT if step else 1.0
            self.baselines.lerp_(baselines, weight)
        for vector, gradient in zip(self.flat, gradients, strict=True):
            vector.grad = gradient
        if self.pieces:
            named = self.parameters.named(gradients)
            pieces = [value for name, value in named.items() if name not in self.parameters.apart]
            for target, gradient in zip(self.trained, pieces, strict=True):
                target.grad = gradient
        found[:] = [value, size]
        return -value

    def _error(self, value: float, gradients: Sequence[Tensor]) -> "_NotFinite":
        number, advice = self.steps + 1, f"try lr < {self.options.lr / 5:g}, and features of about unit variance"
        if not math.isfinite(value):
            what, where = f"the loss is {-value}", self.fault(self.flat, self.batch(self.steps))
        else:
            bad = [name for name, part in self.parameters.named(gradients).items() if not torch.isfinite(part).all()]
            what, where = f"the gradient of {', '.join(bad[:3]) or 'all'} is not finite", ""
        return _NotFinite(f"svi: {what} at step {number} of {self.max_steps}{where}; {advice}")

    def _rate(self) -> float:
        progress = self.progress
        return learning_rate(self.options, self.steps, self.max_steps, progress.decays, progress.setbacks)

    def _natural_rate(self) -> float:
        return natural_rate(self.options, self.steps, self.progress.setbacks)

    def _decide(self, evaluate: Callable[[Sequence[Tensor]], float]) -> None:
        """Look at the window's mean: has its bound risen? If not, lower the rate, or come to the end."""
        progress = self.progress
        best = max((value for _, value in progress.looks), default=-math.inf)
        present = self._present()
        value = evaluate(present)
        progress.looks.append((self.steps, value))
        if value > best or not self.held_out:  # the best by a few draws would be the best for those draws
            for kept, vector in zip(self.best, present, strict=True):
                kept.copy_(vector)
        progress.stalled = 0 if value > best + self.rise else progress.stalled + 1
        if self.options.schedule != "plateau" or not self.trained:
            progress.converged = progress.stalled >= PATIENCE
        elif progress.stalled >= PATIENCE:
            progress.decays, progress.stalled = progress.decays + 1, 0
            progress.converged = progress.decays > DECAYS
        elif progress.decays < sum(self.steps >= share * self.max_steps for share in LATEST):
            progress.decays, progress.stalled = progress.decays + 1, 0

    def _present(self) -> list[Tensor]:
        """The parameters as they would be given back now, without regard to what was best."""
        use = (
            self.average if self.options.averaging else self.flat if self.evaluate is None or self.exact else self.mean
        )
        return [vector.detach() for vector in use]

    def _final(self) -> list[Tensor]:
        return self.best if self.progress.looks and not self.exact else self._present()


class _NotFinite(RuntimeError):
    """A step that cannot be made."""
