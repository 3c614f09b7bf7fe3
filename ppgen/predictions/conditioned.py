"""A run of a model's program at given parameters, and the kinds of sites in it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.data.parts import Inputs
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.over_draws import Theta
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory
from ppgen.programs.parameters import ParametersAt
from ppgen.programs.scores import check_sites

__all__ = ["conditioned", "latent_sites", "name_of", "new_tensors", "observed_sites", "run", "sampled_sites"]


def run(model: Model, theta: Theta, x: Tensor, u: Inputs, *, tracked: bool = False) -> poutine.Trace:
    """Run the program at ``theta``; latent sites that it leaves out are drawn from their prior.

    New tensors are of the type of the data, as they were when the program was fitted. Without ``tracked`` no gradient
    is recorded.
    """
    with nullcontext() if tracked else torch.no_grad(), isolated(), new_tensors(x.dtype):
        trace = poutine.trace(conditioned(model, theta)).get_trace(x, u=u)
    check_sites(name_of(model), trace.nodes)
    return trace


@contextmanager
def new_tensors(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that are made inside have this type if they say nothing else."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype if dtype.is_floating_point else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def conditioned(model: Model, theta: Theta, *, enumerated: bool = False) -> Callable[..., None]:
    """Fix the sites in ``theta`` at their values.

    With ``enumerated`` shapes are not checked, because enumeration adds dimensions on the left.
    """

    def program(x: Tensor, *, u: Inputs) -> None:
        params = memory(model).params
        with ParametersAt(params) if params else nullcontext(), _DrawAt(theta, params, name_of(model), not enumerated):
            model.model(x, u=u)

    return program


def sampled_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Sampled sites of a model's or a guide's trace, observed ones and a guide's auxiliaries among them."""
    sites: dict[str, Any] = dict(trace.nodes)
    return {name: site for name, site in sites.items() if site["type"] == "sample" and not site_is_subsample(site)}


def latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Sampled sites of a trace, without observations and a guide's auxiliaries."""
    return {
        name: site
        for name, site in sampled_sites(trace).items()
        if not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }


def observed_sites(trace: poutine.Trace, theta: Theta) -> dict[str, Any]:
    """Observed sites, without the conditioned ones and those that only record a value."""
    return {
        name: site
        for name, site in sampled_sites(trace).items()
        if site["is_observed"] and not site["infer"].get("_deterministic") and name not in theta
    }


def name_of(model: Model) -> str:
    """The name of a model in messages."""
    return type(model).__name__


@final
class _DrawAt(Messenger):
    """Fixes sites at drawn parameters; a value of another shape, or a part of a plate, is refused."""

    def __init__(self, theta: Theta, params: Mapping[str, Tensor], who: str, shapes: bool) -> None:
        super().__init__()
        self.theta, self.params, self.who, self.shapes = theta, params, who, shapes

    def _pyro_param(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        first = msg["args"][1] if len(msg["args"]) > 1 else None
        learnt = self.params.get(msg["args"][0] if msg["args"] else msg["name"])
        if learnt is not None and isinstance(first, Tensor) and first.shape != learnt.shape:
            raise FitError(
                f"{self.who}: parameter {msg['name']!r} must have shape {tuple(first.shape)} for this data, got "
                f"{tuple(learnt.shape)} from the fit; a parameter that grows with the data cannot be carried over"
            )

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if site_is_subsample(msg):
            self._check_whole(msg)
        if msg["name"] not in self.theta:
            return
        value, expected = self.theta[msg["name"]], msg["fn"].batch_shape + msg["fn"].event_shape
        if self.shapes and value.shape != expected:
            raise FitError(
                f"{self.who}: site {msg['name']!r} must have shape {tuple(expected)} for this data, got "
                f"{tuple(value.shape)} from the fit; a latent that grows with the data cannot be carried over"
            )
        msg["value"], msg["is_observed"] = value, True

    def _check_whole(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        size, taken = msg["fn"].size, msg["fn"].subsample_size
        if msg["value"] is not None:
            taken = len(msg["value"])
        if taken is not None and taken < size:
            raise FitError(
                f"{self.who}: plate {msg['name']!r} must run over all its {size} rows to predict them, got {taken}; "
                "let the plate take as many as there are rows in the data it is called with"
            )
