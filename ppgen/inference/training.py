"""Stochastic gradient steps on a bound: batches, optimiser, learning rate, when to stop, and what is saved on the way.

The random numbers of a step depend on the seed and the number of the step alone, so that a run goes on from a
checkpoint as if it had not stopped.

References: Kingma & Ba (2015); Polyak & Juditsky (1992) and Shamir & Zhang (2013) for the average of the iterates.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppgen.errors import DataError, FileError, FitError
from ppgen.inference.parallel import Group
from ppgen.inference.parameters import Parameters
from ppgen.results.storage import read_tensors, write_tensors

__all__ = ["SCHEDULES", "Gradient", "Options", "Rows", "Run", "seed_device"]

WINDOW = 200  # steps whose mean bound is compared with that of the window before
DECAYS, DECAY = 2, 0.1  # times that the learning rate falls on a plateau before the end, and by how much
PATIENCE = 3  # windows without progress in a row that end a run whose learning rate goes by a plan, or by held-out data
SCHEDULES = ("plateau", "constant", "cosine")
ELEMENTWISE = ("Adam", "AdamW", "Adamax", "Adagrad", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "ASGD")
AVERAGING = 3  # power of the step's number that an iterate weighs in the average
BASELINE_WEIGHT = 0.1  # of the newest value in a running baseline

Gradient = Callable[..., Sequence[Tensor]]
"""(flat parameters..., baselines, rows' data...) -> bound, new baselines, gradients of minus the bound."""


@final
@dataclass(frozen=True)
class Options:
    """What a run is, but for how long it goes on; ``unset`` where all of it was left to the engine."""

    lr: float
    optimizer: Callable[..., torch.optim.Optimizer] | None
    schedule: str | Callable[[int], float]
    warmup: int
    clip: float | None
    batch_size: int | None
    particles: int
    averaging: bool
    early_stopping: bool
    unset: bool = False

    def words(self) -> str:
        """The options in words that are the same in another process."""
        named = {name: getattr(value, "__qualname__", repr(value)) for name, value in vars(self).items()}
        if isinstance(self.optimizer, functools.partial):
            named["optimizer"] = repr((self.optimizer.func.__qualname__, self.optimizer.args, self.optimizer.keywords))
        return repr(named)


@final
class Rows:
    """Rows of each step's batch, always as many: every pass is in a new order, its incomplete last batch left out."""

    def __init__(self, total: int, size: int, seed: int) -> None:
        self.total, self.size, self.seed = total, size, seed
        self.order, self.turn = torch.empty(0, dtype=torch.int64), -1

    def at(self, step: int) -> Tensor:
        """Indices (B,) of the batch of a step."""
        turn, place = divmod(step, self.total // self.size)
        if turn != self.turn:
            generator = torch.Generator().manual_seed(self.seed + turn)
            self.order, self.turn = torch.randperm(self.total, generator=generator), turn
        return self.order[place * self.size : (place + 1) * self.size]


@final
@dataclass
class Progress:
    """What a run has recorded and decided so far."""

    bounds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    decays: int = 0
    stalled: int = 0
    decided: int = 0
    converged: bool = False


@final
class Run:
    """A run under way.

    Parameters
    ----------
    gradient : see `Gradient`.
    parameters : what is trained; they keep their values until `finish`.
    batches : given a seed, what ``gradient`` is given at each step beside parameters and baselines.
    held_out : the bound of held-out rows at flat parameters, if there are any.
    lost : says at which site the bound of a batch is not finite, in words for a message.
    identity : of the run; a checkpoint of another is refused.
    """

    def __init__(
        self,
        gradient: Gradient,
        parameters: Parameters,
        options: Options,
        batches: Callable[[int], Callable[[int], Sequence[Tensor]]],
        held_out: Callable[[Sequence[Tensor]], float] | None,
        lost: Callable[[Sequence[Tensor], Sequence[Tensor]], str],
        *,
        scored: int,
        max_steps: int,
        seed: int,
        group: Group,
        identity: str,
    ) -> None:
        self.gradient, self.parameters, self.options = gradient, parameters, options
        self.batches = batches
        self.evaluate, self.lost, self.max_steps, self.group = held_out, lost, max_steps, group
        self.identity = identity
        self._seed(seed)
        self.flat = parameters.flat()
        group.copy_first(*self.flat)
        self.baselines = torch.zeros(scored, dtype=self.flat[0].dtype, device=self.flat[0].device)
        self.average = [vector.clone() for vector in self.flat]
        self.best = [vector.clone() for vector in self.flat]
        self.trained, self.pieces = self._trained()
        make = options.optimizer or functools.partial(torch.optim.Adam, fused=True)
        self.optimizer = _made(make, self.trained, options.lr)
        self.progress = Progress()

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.progress.bounds)

    @property
    def elbo(self) -> float:
        """The newest bound."""
        return self.progress.bounds[-1]

    @property
    def over(self) -> bool:
        """Whether there is no step left to make."""
        return self.steps >= self.max_steps or (self.options.early_stopping and self.progress.converged)

    def step(self) -> None:
        """One step of the optimiser.

        Raises
        ------
        FitError : the bound or a gradient is not finite; the parameters are those before the step.
        """
        rate = self._rate()
        for part in self.optimizer.param_groups:
            part["lr"] = rate
        found: list[float] = []
        self.optimizer.step(lambda: self._closure(found))
        progress = self.progress
        progress.bounds.append(found[0])
        progress.norms.append(found[1])
        progress.rates.append(rate)
        if self.options.averaging:
            weight = (AVERAGING + 1) / (self.steps + AVERAGING)
            for mean, vector in zip(self.average, self.flat, strict=True):
                mean.lerp_(vector, weight)
        if self.steps % WINDOW == 0:
            self._decide()

    def finish(self) -> None:
        """Give the parameters their final values: the best on held-out rows, the average, or the last."""
        self.parameters.store(self._final())

    def history(self) -> pd.DataFrame:
        """Step, bound in nats (an estimate), norm of the gradient, learning rate; bounds of held-out rows if any."""
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
            table["held_out"] = np.nan
            for step, value in progress.held_out:
                table.loc[step - 1, "held_out"] = value
        return table

    def words(self) -> dict[str, Any]:
        """What was done, for the attributes of a fit."""
        make = self.options.optimizer
        kind = make.func if isinstance(make, functools.partial) else make or torch.optim.Adam
        return {"converged": self.progress.converged, "optimizer": getattr(kind, "__name__", type(kind).__name__)}

    def save(self, path: Path | None) -> None:
        """Write a checkpoint, where there is a place for it."""
        if path is None or not self.group.first:
            return
        progress = self.progress
        lists = {name: value for name, value in vars(progress).items() if isinstance(value, list)}
        tensors = {f"progress/{name}": torch.tensor(value, dtype=torch.float64) for name, value in lists.items()}
        for name in ("flat", "average", "best"):
            tensors |= {f"{name}/{i}": vector.detach() for i, vector in enumerate(getattr(self, name))}
        tensors["baselines"] = self.baselines
        state = self.optimizer.state_dict()["state"]
        content = {
            "identity": self.identity,
            "seed": self.seed,
            "optimizer": _take_apart(state, "optimizer", tensors),
            **{name: value for name, value in vars(progress).items() if name not in lists},
        }
        write_tensors(path, tensors, content)

    def resume(self, path: Path | None) -> None:
        """Go on from a checkpoint, if there is one.

        Raises
        ------
        FileError : it cannot be trusted, or holds another fit.
        """
        if path is None or not path.exists():
            return
        content, tensors = read_tensors(path)
        if content.get("identity") != self.identity:
            raise FileError(
                f"svi: {path} must hold this fit, it holds one of another model, data or options; use another folder"
            )
        self._seed(content["seed"])
        with torch.no_grad():
            for name in ("flat", "average", "best"):
                for i, vector in enumerate(getattr(self, name)):
                    vector.copy_(tensors[f"{name}/{i}"])
            self.baselines.copy_(tensors["baselines"])
        lists: dict[str, Any] = {name: tensors[f"progress/{name}"].tolist() for name in ("bounds", "norms", "rates")}
        held_out = [(int(step), value) for step, value in tensors["progress/held_out"].reshape(-1, 2).tolist()]
        rest = {name: content[name] for name in ("decays", "stalled", "decided", "converged")}
        self.progress = Progress(**lists, held_out=held_out, **rest)
        groups = self.optimizer.state_dict()["param_groups"]
        state = _put_together(content["optimizer"], tensors)
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _seed(self, seed: int) -> None:
        """Streams of this seed for the batches and for the noise: those of seeds next to each other share nothing."""
        self.seed = seed
        self.noise, rows = (int(n) for n in np.random.SeedSequence(seed).generate_state(2, np.uint64) >> 2)
        self.batch = self.batches(rows)

    def _trained(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the optimiser is given: the flat vectors if it treats entries alike, else views with their shapes."""
        make: Any = self.options.optimizer
        kind = make.func if isinstance(make, functools.partial) else make
        kinds = {base.__name__ for base in getattr(kind, "__mro__", ())}
        if kind is None or kinds & set(ELEMENTWISE):
            return list(self.flat), []
        views = list(self.parameters.named(self.flat).values())
        return views, views

    def _closure(self, found: list[float]) -> float:
        """Gradients of a step's batch, into what the optimiser is given; the loss."""
        step = self.steps
        seed_device(self.noise + step * self.group.size + self.group.rank, self.flat[0].device)
        batch = self.batch(step)
        with torch.no_grad():
            flat = [vector.detach() for vector in self.flat]
            bound, baselines, *gradients = self.gradient(*flat, self.baselines, *batch)
            self.group.mean(bound, baselines, *gradients)
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            value, size = torch.stack([bound, norm.to(bound.dtype)]).tolist()
            if not math.isfinite(value) or not math.isfinite(size):
                raise self._error(value, gradients)
            if self.options.clip is not None and size > self.options.clip:
                gradients = [gradient * (self.options.clip / size) for gradient in gradients]
            weight = BASELINE_WEIGHT if step else 1.0
            self.baselines.lerp_(baselines, weight)
        pieces = self.parameters.named(gradients).values() if self.pieces else gradients
        for target, gradient in zip(self.trained, pieces, strict=True):
            target.grad = gradient
        found[:] = [value, size]
        return -value

    def _error(self, value: float, gradients: Sequence[Tensor]) -> FitError:
        number, advice = self.steps + 1, f"try lr < {self.options.lr / 5:g}, and features of about unit variance"
        if not math.isfinite(value):
            what, where = f"the loss is {-value}", self.lost(self.flat, self.batch(self.steps))
        else:
            bad = [name for name, part in self.parameters.named(gradients).items() if not torch.isfinite(part).all()]
            what, where = f"the gradient of {', '.join(bad[:3]) or 'all'} is not finite", ""
        return FitError(f"svi: {what} at step {number} of {self.max_steps}{where}; {advice}")

    def _rate(self) -> float:
        options, step = self.options, self.steps
        warm = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
        if callable(options.schedule):
            return options.lr * warm * _factor(options.schedule, step)
        if options.schedule == "cosine":
            return options.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.max_steps))
        return options.lr * warm * DECAY ** min(self.progress.decays, DECAYS)

    def _decide(self) -> None:
        """At the end of a window: has the bound risen? If not, lower the learning rate, or come to the end."""
        progress = self.progress
        risen = self._has_risen()
        if risen is None:
            return
        progress.stalled = 0 if risen else progress.stalled + 1
        falls = self.options.schedule == "plateau"
        if falls and progress.stalled >= (1 if self.evaluate is None else PATIENCE):
            progress.decays, progress.stalled, progress.decided = progress.decays + 1, 0, self.steps
            progress.converged = progress.decays > DECAYS
        elif not falls:
            progress.converged = progress.stalled >= PATIENCE

    def _has_risen(self) -> bool | None:
        """Whether the bound has risen in the last window by more than its noise; None if it is too early to say."""
        progress = self.progress
        if self.evaluate is not None:
            best = max((value for _, value in progress.held_out), default=-math.inf)
            present = self._present()
            value = self.evaluate(present)
            progress.held_out.append((self.steps, value))
            if value > best:
                for kept, vector in zip(self.best, present, strict=True):
                    kept.copy_(vector)
            return value > best
        if self.steps - progress.decided < 2 * WINDOW or self.steps <= self.options.warmup + WINDOW:
            return None
        before, recent = np.asarray(progress.bounds[-2 * WINDOW :]).reshape(2, WINDOW)
        noise = math.sqrt((before.var(ddof=1) + recent.var(ddof=1)) / WINDOW)
        return bool(recent.mean() - before.mean() > noise)

    def _present(self) -> list[Tensor]:
        """The parameters as they would be given back now, without regard to held-out rows."""
        use = self.average if self.options.averaging else self.flat
        return [vector.detach() for vector in use]

    def _final(self) -> list[Tensor]:
        return self.best if self.progress.held_out else self._present()


def _made(make: Callable[..., Any], trained: list[Tensor], lr: float) -> torch.optim.Optimizer:
    made = make(trained, lr=lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise DataError(
            f"svi: optimizer must give a torch.optim.Optimizer, got {type(made).__name__}; return it from your function"
        )
    return made


def _factor(schedule: Callable[[int], float], step: int) -> float:
    """What a schedule of the user's gives at a step, refused in words where a step by it makes no sense."""
    try:
        found = float(schedule(step))
    except (TypeError, ValueError) as error:
        raise DataError(f"svi: schedule must be a function of the step that gives a number ({error})") from error
    if not 0 <= found < math.inf:
        raise DataError(f"svi: schedule must give factors of zero or more, got {found} at step {step}; mend it there")
    return found


def seed_device(number: int, device: torch.device) -> None:
    """Seed the generator that a device draws from."""
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def _take_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 (an optimiser's state)
    """JSON values in the form of ``value``; its tensors go to ``tensors``, by name."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_apart(part, f"{name}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_take_apart(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]}
    return {"value": value}


def _put_together(plan: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 (an optimiser's state)
    (kind, value), *_ = plan.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _put_together(part, tensors) for key, part in value}
    return [_put_together(part, tensors) for part in value] if kind == "list" else value
