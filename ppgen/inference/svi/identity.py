"""Identity of a run: a run goes on from the checkpoint of another if both have the same."""

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from ppgen.data.parts import parts
from ppgen.inference.svi.objective import Objective
from ppgen.inference.svi.options import Guide, Options
from ppgen.programs.parameters import Parameters
from ppgen.programs.program import Function
from ppgen.programs.task import Task
from ppgen.results.rebuild import describe
from ppgen.storage.checkpoint import Checkpoint

__all__ = ["behaviour", "checkpoint_of", "identity_of"]


def behaviour(task: Task, objective: Objective, parameters: Parameters) -> str:
    """The bound at fixed parameters and noise: what a program does goes by more than its text and its tensors."""
    flat = [torch.full_like(vector, 0.05).requires_grad_() for vector in parameters.flat()]
    own, declared = parameters.split(flat)
    baselines = torch.zeros(len(objective.plan.scored), dtype=flat[0].dtype, device=flat[0].device)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        found = functional_call(objective, own, (task.args, task.kwargs, declared, baselines, 1))
    return repr(float(found[1].detach()))


def identity_of(task: Task, outside: Task | None, options: Options, guide: Guide, more: tuple[object, ...]) -> str:
    """Digest of what makes two runs the same run."""
    kind = guide if isinstance(guide, str) or guide is None else getattr(guide, "__qualname__", type(guide).__name__)
    for part in (guide, options.optimizer, options.schedule):
        more = (*more, _source(part) if isinstance(part, FunctionType) else "")
    digest = hashlib.sha256(repr((options.words(), kind, *more, torch.__version__)).encode())
    tensors: dict[str, Tensor] = {}
    if isinstance(task.model, Function):
        digest.update(_source(task.model.function).encode())
    else:
        description, tensors = describe(task.model)
        own = _source(type(task.model)) if description["arguments"] is None else ""
        digest.update(repr((description, own)).encode())
    data = [*task.args, task.kwargs.get("u"), *([] if outside is None else [*outside.args, outside.kwargs.get("u")])]
    for value in [*tree_leaves([parts(one) if isinstance(one, dict) else one for one in data]), *tensors.values()]:
        if isinstance(value, Tensor):
            digest.update(repr(tuple(value.shape)).encode() + value.numpy(force=True).tobytes())
    return digest.hexdigest()


def checkpoint_of(path: Path, identity: str) -> Checkpoint:
    """Name the checkpoint of the run of this identity."""
    return Checkpoint("svi", path, {"model, data or options": identity}, beside=[path.suffix])


def _source(function: Callable[..., Any]) -> str:
    """The source of a function or class, or its name if there is no source."""
    try:
        return inspect.getsource(partial(function).func)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", repr(type(function)))
