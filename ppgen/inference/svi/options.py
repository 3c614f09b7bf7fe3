"""Options of a run, refused in words where they cannot be."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from ppgen.arguments import require_at_least, require_step_sizes, require_within
from ppgen.errors import DataError
from ppgen.inference.svi.guides import NAMES
from ppgen.programs.task import Task
from ppgen.programs.tracing import MODES

__all__ = ["Guide", "Options", "check_batch", "check_options", "options_of"]

SCHEDULES = ("plateau", "constant", "cosine")
BOUNDS = ("elbo", "iwae")
LR = 0.01

Guide = str | Callable[..., Any] | None


@final
@dataclass(frozen=True)
class Options:
    """Options of a run, except how long it lasts; ``unset`` where all of them were left to the engine."""

    lr: float
    optimizer: Callable[..., torch.optim.Optimizer] | None
    schedule: str | Callable[[int], float]
    warmup: int
    clip: float | None
    batch_size: int | None
    particles: int
    averaging: bool
    early_stopping: bool
    bound: str = "elbo"
    delay: float = 1.0
    forgetting: float = 0.7
    unset: bool = False

    def words(self) -> str:
        """The options in words that are the same in another process."""
        named = {name: getattr(value, "__qualname__", repr(value)) for name, value in vars(self).items()}
        if isinstance(self.optimizer, functools.partial):
            named["optimizer"] = repr((self.optimizer.func.__qualname__, self.optimizer.args, self.optimizer.keywords))
        return repr(named)


def options_of(**values: Any) -> Options:  # noqa: ANN401 (the fields of `Options`)
    """Options, refused in words where they cannot be."""
    if values["optimizer"] is not None and not callable(values["optimizer"]):
        raise DataError(
            f"svi: optimizer must be a class of torch.optim or a function of (parameters, lr=), got "
            f"{type(values['optimizer']).__name__}; pass torch.optim.Adam, without calling it"
        )
    if values["bound"] not in BOUNDS:
        raise DataError(f"svi: bound must be one of {BOUNDS}, got {values['bound']!r}")
    chosen = ("lr", "optimizer", "schedule", "clip", "particles", "warmup", "averaging")
    unset = not any(values[name] for name in chosen) and values["early_stopping"] and values["bound"] == "elbo"
    values["particles"] = 1 if values["particles"] is None else values["particles"]
    values["lr"] = LR if values["lr"] is None else values["lr"]
    require_at_least("svi: particles", values["particles"], 1)
    require_at_least("svi: warmup", values["warmup"], 0)
    require_within("svi: lr", values["lr"], 0, math.inf, "0.01 is usual")
    require_step_sizes("svi", values["delay"], values["forgetting"], least=1)
    if values["clip"] is not None:
        require_within("svi: clip", values["clip"], 0, math.inf, "10 is usual")
    schedule = values.pop("schedule") or ("plateau" if values["early_stopping"] else "constant")
    if not callable(schedule) and schedule not in SCHEDULES:
        raise DataError(f"svi: schedule must be one of {SCHEDULES} or a function of the step, got {schedule!r}")
    return Options(schedule=schedule, unset=unset, **values)


def check_options(counts: dict[str, int], mode: str, guide: Guide) -> None:
    """Refuse counts below one, and names that are not known."""
    for name, value in counts.items():
        require_at_least(f"svi: {name}", value, 1)
    if mode not in MODES:
        raise DataError(f"svi: compile must be one of {MODES}, got {mode!r}")
    if guide is not None and not callable(guide) and guide not in NAMES:
        raise DataError(f"svi: guide must be one of {NAMES}, a function or a module, got {guide!r}")


def check_batch(task: Task, options: Options, processes: int) -> None:
    """Refuse a batch that cannot be, before the processes of a run wait for each other."""
    size = options.batch_size
    if size is None:
        if processes > 1:
            raise DataError(f"svi: batch_size must be given to share a batch among {processes} processes")
        return
    require_at_least("svi: batch_size", size, 1)
    if task.observations is None:
        raise DataError(
            "svi: batch_size is for models, which know the number of rows behind a batch; subclass ppgen.Model"
        )
    if size > task.rows:
        raise DataError(f"svi: batch_size must be between 1 and the {task.rows} rows of x, got {size}")
    if size % processes:
        raise DataError(f"svi: batch_size must be a multiple of the {processes} processes, got {size}")
