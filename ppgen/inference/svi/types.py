"""Types of trained parameters in a fit, which answers in float64: those of networks that cast at their own border."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.programs.density import private_pyro
from ppgen.programs.parameters import ParametersAt
from ppgen.programs.program import copy_model, moved, owner
from ppgen.programs.task import Task
from ppgen.rng import private_stream

__all__ = ["keeps_types"]


def keeps_types(task: Task, guide: Callable[..., Any], declared: Mapping[str, Tensor]) -> bool:
    """Tell whether parameters must stay as they are for the programs to be asked in float64.

    So it is with a network in float32 that casts at its own border, ``self.net(x.float()).double()``. The ``guide`` is
    asked too where it is the model's own. Programs that run neither way are left to say so themselves.
    """
    values = [*task.model.parameters(), *declared.values()]
    if all(value.dtype == torch.float64 for value in values if value.is_floating_point()):
        return False
    return not _runs(task, guide, declared, keep=False) and _runs(task, guide, declared, keep=True)


def _runs(task: Task, guide: Callable[..., Any], declared: Mapping[str, Tensor], *, keep: bool) -> bool:
    """Tell whether copies of the programs run on data in float64, with parameters as they are or in float64."""
    own = owner(guide) is task.model
    asked = replace(task, model=copy_model(task.model)).to(torch.device("cpu"), torch.float64, keep=keep)
    values = {name: value.cpu() if keep else value.cpu().double() for name, value in declared.items()}
    program = asked.program
    try:
        with private_pyro(torch.float64), torch.no_grad(), private_stream(0), ParametersAt(values):
            if own:
                drawn = poutine.trace(moved(guide, asked.model)).get_trace(*asked.args, **asked.kwargs)
                drawn.compute_log_prob()
                program = poutine.replay(program, trace=drawn)
            poutine.trace(program).get_trace(*asked.args, **asked.kwargs).compute_log_prob()
    except Exception:  # noqa: BLE001 (whatever it is: so the programs cannot be asked)
        return False
    return True
