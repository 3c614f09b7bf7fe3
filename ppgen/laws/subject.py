"""The subject of a model's laws: a program, data without gaps, and one point of its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.data.parts import Inputs, each
from ppgen.model import Model
from ppgen.predictions import predictive
from ppgen.predictions.conditioned import latent_sites, run
from ppgen.predictions.outcomes import without_gaps
from ppgen.predictions.row_terms import row_axes
from ppgen.programs.density import density, device_of
from ppgen.programs.memory import remember
from ppgen.programs.program import Function
from ppgen.programs.rows import at_rows, remember_row_plates
from ppgen.programs.task import Task

__all__ = ["Subject", "subject"]

ROWS = 64  # of a model's data that are looked at
RADIUS = 1.0  # half-width of the cube of unconstrained parameters


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A private model, data without gaps, inputs, and parameters: as values ``theta``, and as a vector ``v``.

    ``left_out`` are discrete sites, which are summed out; ``owned`` sites have a value for each row, along that axis.
    """

    model: Model
    x: Tensor
    u: Inputs
    theta: Mapping[str, Tensor]
    v: Float[Tensor, " P"]
    owned: Mapping[str, int]
    left_out: tuple[str, ...]
    had_gaps: bool
    seed: int

    @property
    def is_function(self) -> bool:
        """True if the model is a plain function, whose other arguments stay as they are."""
        return isinstance(self.model, Function)

    @property
    def has_rows(self) -> bool:
        """True if there are data with rows."""
        return (
            self.x.ndim > 0
            and self.x.is_floating_point()
            and len(self.x) > 0
            and getattr(self.model, "takes_data", True)
        )

    @property
    def program(self) -> Callable[..., Any]:
        """The program whose density is taken."""
        return self.model.function if isinstance(self.model, Function) else self.model

    @property
    def args(self) -> tuple[Any, ...]:
        """Arguments of the program."""
        return (self.x, *self.model.rest) if isinstance(self.model, Function) else (self.x,)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its keywords."""
        return {} if self.is_function else {"u": self.u}

    def likelihood(self) -> Float[Tensor, " N"]:
        """Log density of each row at the parameters."""
        return predictive.log_likelihood(self.model, self.theta, self.x, u=self.u)

    def of(self, x: Tensor, shorter: int | None = None) -> "Subject":
        """The same with other data; ``shorter`` sequences take the first steps of inputs along time."""
        steps = self.x.shape[1] if shorter is not None else -1
        u = each(self.u, lambda part: part[:, :shorter] if part.ndim > 1 and part.shape[1] == steps else part)
        return replace(self, x=x, u=u)

    def with_model(self, model: Model) -> "Subject":
        """The same with another model."""
        return replace(self, model=model)

    def at(self, rows: Tensor) -> "Subject":
        """Rows of the data, of the inputs, of what they own, and of what else a function is called with."""
        theta = {
            name: value.index_select(self.owned[name], rows) if name in self.owned else value
            for name, value in self.theta.items()
        }
        model, x, u = at_rows(self.model, self.x, self.u, rows)
        return replace(self, model=model, x=x, u=u, theta=theta)

    def with_gaps(self) -> "Subject":
        """The same data with entries hidden: the first, and in series also a frame, a feature and the end of one."""
        x = self.x.clone()
        x[(0,) * x.ndim] = torch.nan
        if x.ndim == 3:
            x[-1, -max(1, x.shape[1] // 4) :] = torch.nan
            x[0, x.shape[1] // 2] = torch.nan
            x[len(x) // 2, :, 0] = torch.nan
        elif x.ndim == 2:
            x[-1] = torch.nan
        return self.of(x)

    def leaves_out_sites(self) -> bool:
        """Tell whether discrete sites are summed out."""
        return bool(self.left_out)


def subject(task: Task, seed: int) -> Subject:
    """Fill the data and find a point for the parameters.

    Raises
    ------
    DataError or FitError : the program cannot be run, or scores a value twice.
    """
    model = task.model.double()
    remember(model, data=None)  # nothing was fitted
    task = task.to(device_of(model, task.args), torch.float64)
    x, u, gaps = _data(task)
    args = (x, *task.args[1:]) if task.args else ()
    program = model.function if isinstance(model, Function) else model
    keywords: dict[str, Any] = {} if isinstance(model, Function) else {"u": u}
    target = density(program, *args, **keywords)
    v = target.start(1, torch.Generator().manual_seed(seed % 2**32), RADIUS)[0]
    theta = {name: value[0] for name, value in target.constrain(v[None]).items()}
    remember_row_plates(model, x, u)
    trace = run(model, theta, x, u)
    left_out = tuple(latent_sites(trace))
    owned = row_axes(model, theta, x, u=u) if x.ndim else {}
    return Subject(model, x, u, theta, v, owned, left_out, gaps, seed)


def _data(task: Task) -> tuple[Tensor, Inputs, bool]:
    """Data without gaps, inputs, and whether there were gaps; anything but an array of numbers is left alone."""
    x = task.args[0] if task.args else torch.zeros(())
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim:
        return (x if isinstance(x, Tensor) else torch.zeros(())), None, False
    u = task.kwargs.get("u")
    if not isinstance(task.model, Function):
        x, u = x[:ROWS], each(u, lambda part: part[:ROWS])
    gaps = bool(torch.isnan(x).any())
    return without_gaps(x), u, gaps
