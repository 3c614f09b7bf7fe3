"""The checks that a fit gets, and the arrays they need."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppgen.diagnostics import checks as diagnostics
from ppgen.diagnostics.verdict import Check, Report, report
from ppgen.predictions import predictive
from ppgen.predictions.local_sites import completed
from ppgen.predictions.over_draws import NOTHING
from ppgen.predictions.row_terms import log_joint_rows, row_axes
from ppgen.programs.memory import memory
from ppgen.results.labels import SWITCHED, aligned, declared
from ppgen.results.numbering import arbitrary_names
from ppgen.results.posterior import Draws, Factors, evenly
from ppgen.results.reading import Read

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["diagnose", "with_rows"]

Drawn = tuple[dict[str, Tensor], dict[str, Tensor]]

CHECKED_ROWS = 1000  # rows whose own values are looked at, spread evenly over all
LP = "log density"  # what the sampler's record of it is called among the sites


def diagnose(fit: "Fit", read: Read | None, draws: int) -> Report:
    """Report on ``fit``; ``read`` holds the data (labelled, tensor, inputs), which a variational fit's checks need."""
    notes: list[str] = [*fit.attrs.get("relabelled", []), *arbitrary_names(fit.model, fit.attrs)]
    return report(list(_checks(fit, read, draws, notes)), notes)


def _checks(fit: "Fit", read: Read | None, draws: int, notes: list[str]) -> Iterator[Check]:
    """Every check; ``notes`` gets remarks beside them."""
    if fit.attrs.get("interrupted"):
        yield from diagnostics.check_interrupted()
    if isinstance(fit.posterior, Draws) and "log_q" not in fit.posterior.stats:
        yield from _chain_checks(fit, fit.posterior, notes)
    else:
        yield from _bound_checks(fit, notes)
        yield from _posterior_checks(fit, read, draws, notes)
    share = fit.attrs.get("missing_share") if read is None else predictive.missing_share(fit.model, read[1])
    if share is not None:
        yield from diagnostics.check_missing(share)


def _chain_checks(fit: "Fit", posterior: Draws, notes: list[str]) -> Iterator[Check]:
    """Chains, compared after labels without a meaning of their own were aligned."""
    stats = {name: value.numpy(force=True) for name, value in posterior.stats.items()}
    absent = [name for name in ("diverging", "energy") if name not in stats]
    if absent and fit.attrs.get("sampler") != "gibbs":  # which has neither
        notes.append(f"Not checked: {' and '.join(absent)}, which the sampler did not record.")
    if bounded := fit.attrs.get("bounded_sites"):
        notes.append(
            f"What was sampled is a lower bound of the density of {', '.join(bounded)}, whose missing values cannot "
            "all be summed out: posteriors of the parameters may be too narrow."
        )
    if fixed := fit.attrs.get("untrained"):
        notes.append(
            f"Learnt tensors were kept as they were before the run ({', '.join(fixed[:4])}), without uncertainty; were "
            "they trained?"
        )
    if all(torch.isfinite(value).all() for value in posterior.sites.values()):
        posterior, alignments = aligned(posterior, declared(fit.model, posterior))
        for name, alignment in alignments.items():
            before = fit.attrs.get(SWITCHED, {}).get(name, {})
            notes.append(before.get("words", alignment.words(name)))
            yield from diagnostics.check_labels(name, alignment, before.get("moved"))
        turned = fit.model.turned(posterior.sites)
        if turned is not posterior.sites:
            notes.append(
                "Draws may be turned (axes of a latent space) or numbered otherwise without changing anything; they "
                "were made alike."
            )
            posterior = posterior.renumbered(turned)
    sites = {name: value.numpy(force=True) for name, value in posterior.sites.items()}
    lp = {LP: stats["lp"]} if "lp" in stats else {}
    yield from diagnostics.check_chains({**sites, **lp})
    yield from diagnostics.check_modes(sites, stats.get("lp"))
    yield from diagnostics.check_sampler(stats)


def _bound_checks(fit: "Fit", notes: list[str]) -> Iterator[Check]:
    """The bound of the run that was kept: monotone where every step was a full one."""
    kept = fit.history[fit.history["kept"]] if "kept" in fit.history else fit.history
    climbed = next((name for name in ("elbo", "log_joint") if name in kept), None)
    elbo = np.empty(0) if climbed is None else kept[climbed].to_numpy(dtype=float)
    monotone = "step_size" in kept and bool((kept["step_size"] == 1).all())
    yield from diagnostics.check_elbo(elbo, monotone=monotone)
    yield from diagnostics.check_convergence(fit.attrs.get("converged"), elbo)
    restarts = fit.attrs.get("restart_elbos", [])
    yield from diagnostics.check_restarts(restarts)
    if len(restarts) < 2:
        more = " (n_init)" if len(restarts) == 1 else ""
        notes.append(f"One start was made: whether others end higher was not looked at{more}.")


def _posterior_checks(fit: "Fit", read: Read | None, draws: int, notes: list[str]) -> Iterator[Check]:
    """Checks of the distance of q from the posterior, by draws of q and both densities of them."""
    finite = _finite_share(fit.posterior)
    if finite < 1.0:
        yield from diagnostics.check_finite(finite)
    elif _is_point(fit.posterior):
        yield from diagnostics.check_point()
    elif read is None:
        yield from diagnostics.check_compared()
    else:
        yield from _weighed_checks(fit, read, with_rows(fit, read, _draws(fit, draws, notes)), notes)


def _weighed_checks(fit: "Fit", read: Read, drawn: Drawn, notes: list[str]) -> Iterator[Check]:
    """Draws of q, weighed by the posterior: all sites at once, or row by row where each row has values of its own."""
    (_, x, u), (theta, stats) = read, drawn
    joint = predictive.gather(lambda one: predictive.log_joint(fit.model, one, x, u=u), theta)
    log_ratio = (joint - stats["log_q"]).numpy(force=True)
    values = _uncertain(fit.posterior, theta, notes)
    k_hat = list(diagnostics.check_importance(log_ratio))
    if all(check.ok for check in k_hat):
        yield from k_hat
        yield from diagnostics.check_moments(values, log_ratio)
        return
    axes = row_axes(fit.model, predictive.at(theta, 0), x, u=u) if "log_q_rows" in stats else {}
    if axes:
        yield from _row_checks(fit, read, drawn, axes)
    if set(values) - set(axes):
        yield from k_hat
        shared = " of sites that rows share" if axes else ""
        notes.append(f"Not compared: means and widths{shared}, for the draws of q cannot be reweighted.")


def _row_checks(fit: "Fit", read: Read, drawn: Drawn, axes: dict[str, int]) -> Iterator[Check]:
    """Checks of values that each row has for itself, in a limited number of rows."""
    (_, x, u), (theta, stats) = read, drawn
    chosen = evenly(len(x), min(len(x), CHECKED_ROWS))
    joint = predictive.gather(lambda one: log_joint_rows(fit.model, one, x, u=u)[chosen], theta)
    own = {site: theta[site].movedim(axis + 1, 1)[:, chosen].numpy(force=True) for site, axis in axes.items()}
    yield from diagnostics.check_rows(own, (joint - stats["log_q_rows"][:, chosen]).numpy(force=True))


def _finite_share(posterior: Draws | Factors) -> float:
    """Share of the numbers behind a posterior that are finite."""
    if isinstance(posterior, Draws):
        values = [*posterior.sites.values(), *posterior.stats.values()]
    else:
        values = [value for factor in posterior.factors.values() for value in factor.eta.values()]
        values += list(posterior.points.values())
    bad = sum(int((~torch.isfinite(value)).sum()) for value in values)
    return 1 - bad / max(1, sum(value.numel() for value in values))


def _is_point(posterior: Draws | Factors) -> bool:
    """Tell whether every draw is the same: q is one value, which it has not drawn from any density."""
    return (
        isinstance(posterior, Draws)
        and bool(posterior.sites)  # none where rows own all latents
        and bool((posterior.stats["log_q"] == 0).all())
        and all(bool((value == value[:1, :1]).all()) for value in posterior.sites.values())
    )


def _draws(fit: "Fit", draws: int, notes: list[str]) -> Drawn:
    """Draws of q and their log densities."""
    posterior = fit.posterior
    if isinstance(posterior, Factors):
        theta = posterior.draws(draws)
        return theta, {"log_q": posterior.log_prob(theta)}
    if draws > posterior.size:
        notes.append(f"Of draws={draws:,} the fit holds {posterior.size:,}, which were used.")
    count = min(draws, posterior.size)
    continuous = Draws(posterior.sites, posterior.stats)  # of which q and the density are, the discrete summed out
    return continuous.draws(count), continuous.draw_stats(count)


def with_rows(fit: "Fit", read: Read, drawn: Drawn) -> Drawn:
    """Draws of q with those of what rows own, where a guide proposes these for any rows."""
    (_, x, u), (theta, stats) = read, drawn
    if memory(fit.model).guide is None:
        return drawn
    whole, log_q_rows = completed(fit.model, theta, x, u)
    whole.pop(NOTHING, None)
    return whole, {**stats, "log_q": stats["log_q"] + log_q_rows.sum(-1), "log_q_rows": log_q_rows}


def _uncertain(posterior: Draws | Factors, theta: dict[str, Tensor], notes: list[str]) -> dict[str, np.ndarray]:
    """Draws of the sites that q has a width for."""
    points = posterior.points if isinstance(posterior, Factors) else {}
    if points:
        notes.append(f"Points without a width of their own, not compared: {', '.join(points)}.")
    return {site: value.numpy(force=True) for site, value in theta.items() if site not in points}
