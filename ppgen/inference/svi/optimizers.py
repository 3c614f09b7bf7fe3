"""Optimisers of small steps and their learning rates, and the state of any optimiser in a checkpoint."""

import functools
import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from ppgen.errors import DataError
from ppgen.inference.svi.options import Options

__all__ = [
    "DECAYS", "learning_rate", "natural_rate", "optimizer_of", "put_together", "take_apart", "views_needed",
]  # fmt: skip

DECAYS, DECAY = 2, 0.1  # times that the learning rate falls on a plateau before the end, and by how much
SLOWER = 0.2  # times the rate before a run went back to good parameters
ELEMENTWISE = ("Adam", "AdamW", "Adamax", "Adagrad", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "ASGD")


def views_needed(options: Options) -> bool:
    """Tell whether the optimiser must see each tensor with its shape: it does not treat all entries alike."""
    make: Any = options.optimizer
    kind = make.func if isinstance(make, functools.partial) else make
    kinds = {base.__name__ for base in getattr(kind, "__mro__", ())}
    return kind is not None and not kinds & set(ELEMENTWISE)


def optimizer_of(options: Options, trained: list[Tensor]) -> torch.optim.Optimizer:
    """Make the optimiser of the tensors ``trained``; without any, one that does nothing.

    Raises
    ------
    DataError : the function that was to make it gives something else.
    """
    if not trained:
        return _NoOptimizer()
    make: Callable[..., Any] = options.optimizer or functools.partial(torch.optim.Adam, fused=True)
    made = make(trained, lr=options.lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise DataError(
            f"svi: optimizer must give a torch.optim.Optimizer, got {type(made).__name__}; return it from your function"
        )
    return made


def learning_rate(options: Options, step: int, max_steps: int, decays: int, setbacks: int) -> float:
    """The learning rate of a step, after so many falls on a plateau and so many returns to good parameters."""
    warm = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    warm *= SLOWER**setbacks
    if callable(options.schedule):
        return options.lr * warm * _factor(options.schedule, step)
    if options.schedule == "cosine":
        return options.lr * warm * 0.5 * (1 + math.cos(math.pi * step / max_steps))
    return options.lr * warm * DECAY ** min(decays, DECAYS)


def natural_rate(options: Options, step: int, setbacks: int) -> float:
    """Step size along natural gradients: whole steps with all rows, falling ones in minibatches."""
    slower = SLOWER**setbacks
    if options.batch_size is None:
        return slower
    return float(slower * (step + options.delay) ** -options.forgetting)


def take_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 (an optimiser's state)
    """JSON values in the form of ``value``; its tensors go to ``tensors``, by name."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, take_apart(part, f"{name}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [take_apart(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]}
    return {"value": value}


def put_together(plan: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 (an optimiser's state)
    """The value that `take_apart` turned into ``plan`` and ``tensors``."""
    (kind, value), *_ = plan.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: put_together(part, tensors) for key, part in value}
    return [put_together(part, tensors) for part in value] if kind == "list" else value


def _factor(schedule: Callable[[int], float], step: int) -> float:
    """The factor that a user's schedule gives at a step; one that makes no sense is refused in words."""
    try:
        found = float(schedule(step))
    except (TypeError, ValueError) as error:
        raise DataError(f"svi: schedule must be a function of the step that gives a number ({error})") from error
    if not 0 <= found < math.inf:
        raise DataError(f"svi: schedule must give factors of zero or more, got {found} at step {step}; mend it there")
    return found


@final
class _NoOptimizer(torch.optim.Optimizer):
    """Steps of a run that has natural gradients alone."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(0)], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return None if closure is None else closure()
