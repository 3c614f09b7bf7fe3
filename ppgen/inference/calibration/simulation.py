r"""Parameters and data drawn together from a Pyro program, and the program given such data.

Data that a template does not observe (NaN) are drawn and then hidden, so that a fit meets the gaps of the template
and a check knows what was behind them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from ppgen.data.arrays import to_tensor
from ppgen.data.by_sequence import read_inputs_of
from ppgen.data.parts import Inputs
from ppgen.errors import DataError
from ppgen.model import Model
from ppgen.predictions import predictive
from ppgen.programs.arguments import as_arguments
from ppgen.programs.density import Density, density, private_pyro
from ppgen.programs.explained import explained, refuse_negative_indexes
from ppgen.programs.naming import check_keywords
from ppgen.programs.program import copy_model
from ppgen.rng import private_stream

__all__ = ["Data", "Joint", "Simulated", "joint", "stacked"]

Data = Tensor | dict[str, Tensor]
"""Of a `Model` its ``x``; of a function the values of its observed sites."""


class Simulated(NamedTuple):
    """One draw of everything: parameters, the data with gaps, and what the gaps hide."""

    theta: dict[str, Tensor]
    data: Data
    whole: Data


@final
@dataclass(frozen=True, eq=False)
class Joint:
    """A program as a joint distribution of parameters and data; made by `joint`.

    ``program`` takes data and observes it; ``density`` is that of the parameters given the template; ``labelled`` are
    the template's labels, of a model only.
    """

    model: Model | Callable[..., Any]
    program: Callable[..., Any]
    density: Density
    args: tuple[Any, ...]
    u: Inputs
    labelled: xr.DataArray | None

    @property
    def template(self) -> Data:
        """Data of the right shape, with its gaps."""
        return self.density.args[0]

    def simulate(self, seed: int) -> Simulated:
        """One draw from the stream of ``seed``."""
        with private_stream(seed), torch.no_grad(), private_pyro(self.density.dtype), _drawable():
            return _of_model(self, self.model) if isinstance(self.model, Model) else _of_function(self)


def joint(model: Model | Callable[..., Any], args: tuple[Any, ...], u: object = None) -> Joint:
    """Read a model and template data, or a function and arguments with which it observes something.

    Raises
    ------
    DataError : nothing is observed, a factor without a distribution, or a prior that cannot be drawn from.
    """
    if isinstance(model, Model):
        if len(args) != 1:
            raise DataError(f"calibrate: a model takes template data x and nothing else, got {len(args)} arguments")
        check_keywords("calibrate", model.model, f"{type(model).__name__}.model", ("u",))
        labelled = model.observations(args[0])
        x = to_tensor(labelled)
        model = copy_model(model)
        model.check(x)
        inputs = read_inputs_of("calibrate", u, labelled).inputs.values
        refuse_negative_indexes("calibrate", model.model, (x,), {"u": inputs})
        with explained("calibrate", model.model, (x,), {"u": inputs}):
            _observed(lambda: model.model(x, u=inputs))
            return Joint(model, model.model, density(model, x, u=inputs), args, inputs, labelled)
    if u is not None:
        raise DataError("calibrate: u is for models; pass what a function takes as further arguments")
    function: Any = model
    args = as_arguments("calibrate", function, args)
    refuse_negative_indexes("calibrate", function, args, {})
    with explained("calibrate", function, args, {}):
        observed = _observed(lambda: function(*args))

    def program(data: dict[str, Tensor]) -> Any:  # noqa: ANN401 (the function's own)
        return poutine.condition(function, data=data)(*args)

    return Joint(function, program, density(program, observed), args, None, None)


def _of_model(joint: Joint, model: Model) -> Simulated:
    template = joint.density.args[0]
    theta = predictive.prior(model, template, u=joint.u)
    whole = predictive.replicate(model, theta, template, u=joint.u)
    return Simulated(theta, _hidden(whole, template), whole)


def _of_function(joint: Joint) -> Simulated:
    run: Any = poutine.trace(poutine.uncondition(joint.model)).get_trace(*joint.args)
    template: dict[str, Tensor] = joint.density.args[0]
    theta = {name: site["value"] for name, site in predictive.latent_sites(run).items() if name not in template}
    whole: dict[str, Tensor] = {name: run.nodes[name]["value"] for name in template}
    return Simulated(theta, {name: _hidden(whole[name], value) for name, value in template.items()}, whole)


def _observed(run: Callable[[], Any]) -> dict[str, Tensor]:
    """Values that a program observes, {site: value}; sites that can be scored and not drawn are refused."""
    with private_stream(0), torch.no_grad(), private_pyro(torch.float64), _drawable():
        trace: Any = poutine.trace(run).get_trace()
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["infer"].get("_deterministic"):
            continue
        if site["is_observed"]:
            if isinstance(_base(site["fn"]), dist.Unit):
                raise DataError(
                    f"calibrate: every term must be a distribution that can be drawn from, got the factor {name!r}; "
                    "write it as a sample statement"
                )
            found[name] = site["value"]
        elif _improper(site["fn"]):
            raise DataError(f"calibrate: every prior must be one that can be drawn from, but that of {name!r} is flat")
    if not found:
        raise DataError(
            "calibrate: the program must observe data, but it observes none; pass template data of the right shape "
            "(its numbers are not used)"
        )
    return found


def _improper(fn: Any) -> bool:  # noqa: ANN401 (a Pyro distribution)
    """Tell whether a prior is switched off by a mask, in part or entirely."""
    while fn is not None:
        mask = getattr(fn, "_mask", None) if isinstance(fn, dist.MaskedDistribution) else None
        if mask is False or (isinstance(mask, Tensor) and not bool(mask.all())):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def _base(fn: Any) -> Any:  # noqa: ANN401 (a Pyro distribution)
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _hidden(whole: Tensor, template: Tensor) -> Tensor:
    if whole.shape != template.shape:
        raise DataError(
            f"calibrate: simulated data must have the shape of the template {tuple(template.shape)}, got "
            f"{tuple(whole.shape)}; the shape of an observed site depends on its values"
        )
    return torch.where(torch.isnan(template), torch.nan, whole) if template.is_floating_point() else whole


@contextmanager
def _drawable() -> Iterator[None]:
    """Report a prior without a sampler in words."""
    try:
        yield
    except NotImplementedError as error:
        cause = str(error).split("\n")[0] or "it has no sampler"
        raise DataError(
            f"calibrate: every prior must be one that can be drawn from ({cause}); give it a proper one"
        ) from error


def stacked(values: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Draws of many replications as one, {site: (R, *shape)}."""
    return {name: torch.stack([value[name] for value in values]) for name in values[0]}
