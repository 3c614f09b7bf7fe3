"""What a gradient engine needs of a model's guide: its parameters, that it fits the model, and draws of it."""

import copy
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.errors import FitError
from ppgen.inference.predictive import latent_sites
from ppgen.model import Model

__all__ = ["copy_model", "draw_guide", "first_bad_site", "trainable"]


M = TypeVar("M", bound=Model)


def copy_model(model: M) -> M:
    """A deep copy. The automatic guide is left out: copying one empties the original (a trap of Pyro's)."""
    automatic = model.__dict__.get("_mean_field")
    copied = copy.deepcopy(model, {} if automatic is None else {id(automatic): "left out"})
    copied.__dict__.pop("_mean_field", None)
    return copied


def trainable(model: Model, x: Tensor, u: Tensor | None) -> dict[str, Tensor]:
    """Everything to be trained, by name: the model's own parameters and those its programs declare.

    The guide runs first, for it may make its parameters when it first sees data.
    """
    with poutine.trace(param_only=True) as declared:
        guide = poutine.trace(model.guide).get_trace(x, u=u, total=len(x))
        program = poutine.trace(poutine.replay(model.model, guide)).get_trace(x, u=u, total=len(x))
    _check_cover(guide, program)
    found: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    known = {id(value) for value in found.values()}
    sites: dict[str, Any] = dict(declared.trace.nodes)
    for name, site in sites.items():
        if site["type"] == "param" and id(value := site["value"].unconstrained()) not in known:
            found[name] = value
            known.add(id(value))
    if not found:
        raise FitError(f"svi: the guide of {type(model).__name__} must have parameters to train, it has none")
    return found


def _check_cover(guide: poutine.Trace, program: poutine.Trace) -> None:
    missing = sorted(set(latent_sites(program)) - set(latent_sites(guide)))
    extra = sorted(set(latent_sites(guide)) - set(program.nodes))
    if missing or extra:
        raise FitError(f"svi: the guide must draw the latent sites of the model, it lacks {missing} and adds {extra}")


def draw_guide(model: Model, x: Tensor, u: Tensor | None, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    """``draws`` draws of the guide, {site: (S, ...)}, and their log density (S,)."""
    values: dict[str, list[Tensor]] = {}
    log_q: list[Tensor] = []
    with torch.no_grad():
        for _ in range(draws):
            trace = poutine.trace(model.guide).get_trace(x, u=u, total=len(x))
            for name, site in latent_sites(trace).items():
                values.setdefault(name, []).append(site["value"])
            log_q.append(torch.as_tensor(trace.log_prob_sum()))
    return {name: torch.stack(drawn) for name, drawn in values.items()}, torch.stack(log_q)


def first_bad_site(model: Model, x: Tensor, u: Tensor | None) -> str:
    """Name the first site whose log-probability is not finite, in the words of a message."""
    guide = poutine.trace(model.guide).get_trace(x, u=u, total=len(x))
    program = poutine.trace(poutine.replay(model.model, guide)).get_trace(x, u=u, total=len(x))
    for name, site in {**_scored(guide), **_scored(program)}.items():
        if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
            return f' (site "{name}")'
    return ""


def _scored(trace: poutine.Trace) -> dict[str, Any]:
    return {
        name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)
    }
