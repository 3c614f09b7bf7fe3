"""Which checks a fit gets, and the arrays they need."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.inference import diagnostics, predictive
from ppgen.inference.diagnostics import Check, Report
from ppgen.results.posterior import Draws, Factors

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["diagnose"]

Read = tuple[xr.DataArray, Tensor, Tensor | None]

PERMUTABLE = ("state", "component", "topic")  # axes whose labels carry no meaning of their own


def diagnose(fit: "Fit", read: Read | None, draws: int) -> Report:
    """Report on ``fit``; ``read`` holds the data (labelled, tensor, inputs), which importance ratios need."""
    return diagnostics.report(list(_checks(fit, read, draws)))


def _checks(fit: "Fit", read: Read | None, draws: int) -> Iterator[Check]:
    if fit.attrs.get("interrupted"):
        yield from diagnostics.check_interrupted()
    if isinstance(fit.posterior, Draws) and "log_q" not in fit.posterior.stats:
        yield from _chain_checks(fit, fit.posterior)
    else:
        yield from _bound_checks(fit)
        if read is not None:
            _, x, u = read
            yield from diagnostics.check_importance(_log_ratio(fit, x, u, draws))
    share = fit.attrs.get("missing_share") if read is None else predictive.missing_share(fit.model, read[1])
    if share is not None:
        yield from diagnostics.check_missing(share)


def _chain_checks(fit: "Fit", posterior: Draws) -> Iterator[Check]:
    sites = {name: value.numpy(force=True) for name, value in posterior.sites.items()}
    yield from diagnostics.check_chains(sites)
    yield from diagnostics.check_sampler({name: value.numpy(force=True) for name, value in posterior.stats.items()})
    yield from diagnostics.check_labels(sites, _permutable(fit.model.dims))


def _bound_checks(fit: "Fit") -> Iterator[Check]:
    """The bound of the run that was kept: monotone where every step was a full one."""
    kept = fit.history[fit.history["kept"]] if "kept" in fit.history else fit.history
    elbo = kept["elbo"].to_numpy(dtype=float) if "elbo" in kept else np.empty(0)
    monotone = "step_size" in kept and bool((kept["step_size"] == 1).all())
    yield from diagnostics.check_elbo(elbo, monotone=monotone)
    yield from diagnostics.check_convergence(fit.attrs.get("converged"), elbo)
    yield from diagnostics.check_restarts(fit.attrs.get("restart_elbos", []))


def _log_ratio(fit: "Fit", x: Tensor, u: Tensor | None, draws: int) -> np.ndarray:
    """Log p(theta, x) - log q(theta) at draws from q."""
    posterior = fit.posterior
    if isinstance(posterior, Factors):
        theta = posterior.draws(draws)
        log_q = posterior.log_prob(theta)
    else:
        theta = posterior.draws(min(draws, posterior.size))
        log_q = posterior.draw_stats(len(next(iter(theta.values()))))["log_q"]
    joint = [predictive.log_joint(fit.model, predictive.at(theta, i), x, u=u) for i in range(len(log_q))]
    return (torch.stack(joint) - log_q).numpy(force=True)


def _permutable(dims: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Site -> its one event axis whose labels can be permuted; sites with two such axes are left out."""
    axes = {site: [i for i, dim in enumerate(names) if dim in PERMUTABLE] for site, names in dims.items()}
    return {site: found[0] for site, found in axes.items() if len(found) == 1 and "next_state" not in dims[site]}
