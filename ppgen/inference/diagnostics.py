r"""Can this fit be trusted? Checks on plain arrays, each a line in words; the verdict fails closed.

Every check is written so that NaN fails it. What is checked, and where the thresholds come from: rank-normalised
split :math:`\hat R` and effective sample sizes (Vehtari et al. 2021), divergences and E-BFMI (Betancourt 2016), the
Pareto shape :math:`\hat k` of importance ratios :math:`p/q` (Vehtari et al. 2024; Yao et al. 2018).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

__all__ = [
    "Check",
    "Report",
    "check_chains",
    "check_convergence",
    "check_elbo",
    "check_importance",
    "check_interrupted",
    "check_labels",
    "check_missing",
    "check_restarts",
    "check_sampler",
    "report",
]

Array = np.ndarray

RHAT, ESS_PER_CHAIN, EBFMI, DIVERGENT_SHARE = 1.01, 100, 0.3, 0.0
MISSING_SHARE, RESTART_NATS, ELBO_DROP = 0.5, 10.0, 1e-8


class Check(NamedTuple):
    """One line of a report."""

    check: str
    value: float
    threshold: str
    ok: bool
    advice: str


@dataclass(frozen=True, eq=False)
class Report:
    """Whether a fit can be trusted: ``ok``, a ``verdict`` in words, and a ``table`` with one row per check."""

    ok: bool
    verdict: str
    table: pd.DataFrame

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(_line(Check(*row)) for row in self.table.itertuples(index=False))])


def report(checks: Sequence[Check]) -> Report:
    """Verdict over all checks; without any check it is not good, for nothing was shown."""
    table = pd.DataFrame(list(checks), columns=list(Check._fields))
    failed = [check for check in checks if not check.ok]
    if not checks:
        return Report(False, "Not to be trusted: nothing could be checked.", table)
    if failed:
        names = ", ".join(dict.fromkeys(check.check.split(" of ")[0] for check in failed))
        return Report(
            False, f"Not to be trusted as it is: {len(failed)} of {len(checks)} checks failed ({names}).", table
        )
    return Report(True, f"No problem found: {len(checks)} of {len(checks)} checks passed.", table)


def check_chains(draws: Mapping[str, Float[Array, "C S *event"]]) -> Iterator[Check]:
    """R-hat and effective sample sizes of every site, its worst entry; chains that never moved.

    What is constant by construction (the zeros of a triangle, the one probability of a single state) is left out; if
    nothing moves at all, that is a failure.
    """
    values = {site: np.asarray(value, dtype=float) for site, value in draws.items()}
    moving = {
        site: value for site, value in values.items() if value.size and not np.all(np.ptp(value, axis=(0, 1)) == 0)
    }
    if not moving:
        yield Check("moving chains", 0.0, "= 100%", False, "no chain ever moved: the start or the step size is bad")
    for site, value in moving.items():
        yield from _check_site(site, value)


def check_sampler(stats: Mapping[str, Shaped[Array, "C S"]]) -> Iterator[Check]:
    """Divergences and the energy of a Hamiltonian sampler, from its records ``diverging`` and ``energy``."""
    if "diverging" in stats:
        share = _share(stats["diverging"])
        yield Check(
            "divergences",
            share,
            f"<= {DIVERGENT_SHARE:.0%} of draws",
            share <= DIVERGENT_SHARE,
            "the posterior has corners the sampler cannot enter: raise target_accept towards 1, or tighten the priors",
        )
    if "energy" in stats:
        bfmi = _ebfmi(np.asarray(stats["energy"], dtype=float))
        yield Check(
            "E-BFMI",
            bfmi,
            f">= {EBFMI}",
            bfmi >= EBFMI,
            "the tails are explored slowly: run longer, or reparameterise scales and hierarchies",
        )


def check_importance(log_ratio: Float[Array, " S"]) -> Iterator[Check]:
    """Pareto shape k-hat of ``log p(theta, x) - log q(theta)`` at draws from q: whether q can stand in for p.

    Where the model gives a bound of its evidence, so is this p.
    """
    ratio = np.asarray(log_ratio, dtype=float)
    limit = min(1 - 1 / math.log10(ratio.size), 0.7) if ratio.size > 10 else 0.0
    value = _pareto_shape(ratio)
    yield Check(
        "Pareto k-hat",
        value,
        f"< {limit:.2f}",
        value < limit,
        "the variational posterior of the parameters is no stand-in for the exact one: do not quote its intervals of "
        "single parameters, judge predictions on held-out data, or run mcmc",
    )


def check_elbo(elbo: Float[Array, " I"], *, monotone: bool) -> Iterator[Check]:
    """Every bound is a number; a ``monotone`` bound (full-batch coordinate ascent) never goes down."""
    values = np.asarray(elbo, dtype=float)
    finite = float(np.isfinite(values).mean()) if values.size else math.nan
    yield Check("finite ELBO", finite, "= 100% of steps", finite == 1.0, "a step lost its way: try a smaller step size")
    if monotone and values.size > 1:
        drop = float(np.max(-np.diff(values) / np.maximum(1.0, np.abs(values[1:]))))
        yield Check(
            "ELBO drop", drop, f"<= {ELBO_DROP:g} relative", drop <= ELBO_DROP, "report this: the bound must never drop"
        )


def check_convergence(converged: bool | None, elbo: Float[Array, " I"]) -> Iterator[Check]:
    """Whether the engine's own test of convergence was met; the slope shown is that of the last tenth of the run."""
    yield Check(
        "ELBO slope",
        _last_slope(np.asarray(elbo, dtype=float)),
        "converged by the engine's test, nats per step",
        converged is True,
        "it stopped before it was done: raise max_steps",
    )


def check_interrupted() -> Iterator[Check]:
    """A run that somebody stopped."""
    yield Check("complete run", 0.0, "= 1", False, "it was interrupted; what there is may do, but nobody has shown it")


def check_missing(share: float) -> Iterator[Check]:
    """Share of missing entries: with most of them missing, the answers are mostly the model's own."""
    yield Check(
        "missing share",
        share,
        f"<= {MISSING_SHARE:.0%}",
        share <= MISSING_SHARE,
        "more is imagined than seen: check the data, and that gaps do not depend on what they hide",
    )


def check_restarts(elbos: Sequence[float]) -> Iterator[Check]:
    """How far the best restart is ahead of the second: a lone winner may not be the best there is."""
    values = np.sort(np.asarray(elbos, dtype=float))[::-1]
    if values.size > 1:
        gap = float(values[0] - values[1]) if np.isfinite(values).all() else math.nan
        yield Check(
            "gap between the two best restarts",
            gap,
            f"<= {RESTART_NATS:g} nats",
            gap <= RESTART_NATS,
            "the optimum depends on the start: raise n_init",
        )


def check_labels(draws: Mapping[str, Float[Array, "C S *event"]], axes: Mapping[str, int]) -> Iterator[Check]:
    """Label switching: chains that agree once the entries along an axis are sorted, and not before.

    ``axes`` gives, per site, the event axis that labels can permute.
    """
    sites = {site: np.asarray(draws[site], dtype=float) for site in axes if site in draws and len(draws[site]) > 1}
    for site, value in sites.items():
        plain, ordered = _worst_rhat(value), _worst_rhat(np.sort(value, axis=2 + axes[site]))
        if np.ptp(value) > 0:
            switched = not plain <= RHAT and ordered <= max(RHAT, 1 + (plain - 1) / 4)
            yield Check(
                f"label switching of {site}",
                plain,
                "R-hat as good as that of sorted labels",
                not switched,
                f"R-hat falls to {ordered:.3f} when labels are sorted: chains number the states differently; compare "
                "only what does not depend on labels, or relabel first",
            )


def _check_site(site: str, value: Array) -> Iterator[Check]:
    moved = float(_moved(value))
    yield Check(
        f"moving chains of {site}", moved, "= 100%", moved == 1.0, "a chain never moved: its start or step size is bad"
    )
    rhat = _worst_rhat(value) if moved == 1.0 else math.nan
    yield Check(
        f"R-hat of {site}", rhat, f"<= {RHAT}", rhat <= RHAT, "chains disagree: run longer (tune, draws), more chains"
    )
    wanted = ESS_PER_CHAIN * value.shape[0]
    for kind in ("bulk", "tail"):
        ess = _worst_ess(value, kind) if moved == 1.0 else math.nan
        yield Check(
            f"ESS ({kind}) of {site}", ess, f">= {wanted}", ess >= wanted, "too few independent draws: more draws"
        )


def _moved(value: Array) -> float:
    """Share of chains in which every entry moved; NaN where a draw is not finite."""
    if not np.isfinite(value).all():
        return math.nan
    return float((np.ptp(_entries(value), axis=2) > 0).all(0).mean())


def _entries(value: Array) -> Array:
    """Draws as (entries, C, S), without the entries that are constant by construction."""
    flat = np.moveaxis(value.reshape(*value.shape[:2], -1), -1, 0)
    return flat[~(np.ptp(flat, axis=(1, 2)) == 0)]


def _worst_rhat(value: Array) -> float:
    from arviz_stats.base import array_stats  # slow to import, and only a report needs it

    entries = _entries(value)
    if value.shape[0] < 2 or not len(entries):
        return math.nan
    return float(np.max(array_stats.rhat(entries, chain_axis=-2, draw_axis=-1, method="rank")))


def _worst_ess(value: Array, kind: str) -> float:
    from arviz_stats.base import array_stats

    entries = _entries(value)
    if not len(entries):
        return math.nan
    prob = {"prob": (0.05, 0.95)} if kind == "tail" else {}
    return float(np.min(array_stats.ess(entries, chain_axis=-2, draw_axis=-1, method=kind, **prob)))


def _ebfmi(energy: Array) -> float:
    """Worst chain's mean squared change of energy over its variance."""
    if energy.shape[1] < 3 or not np.isfinite(energy).all():
        return math.nan
    variance = np.var(energy, axis=1, ddof=1)
    return float(np.min(np.mean(np.diff(energy, axis=1) ** 2, axis=1) / variance)) if (variance > 0).all() else math.nan


def _pareto_shape(log_ratio: Array) -> float:
    """k-hat of the largest ratios; NaN ratios make it NaN, ratios all alike (q is exact) make it minus infinity."""
    from arviz_stats.base import array_stats

    if log_ratio.size < 25 or not np.isfinite(log_ratio).all():
        return math.nan
    if np.ptp(log_ratio) < 1e-8 * max(1.0, float(np.abs(log_ratio).max())):
        return -math.inf
    # arviz smooths the importance weights of leave-one-out, which are those of minus its argument.
    _, shape = array_stats.psislw(-log_ratio, axis=-1)
    return float(shape)


def _last_slope(elbo: Array) -> float:
    """Gain per step over the last tenth of the steps (two at least)."""
    tail = elbo[-max(2, elbo.size // 10) :]
    return float((tail[-1] - tail[0]) / (tail.size - 1)) if tail.size > 1 else math.nan


def _share(flags: Array) -> float:
    values = np.asarray(flags, dtype=float)
    return float(values.mean()) if values.size else math.nan


def _line(row: Check) -> str:
    mark, advice = ("ok  ", "") if row.ok else ("FAIL", f": {row.advice}")
    return f"{mark} {row.check}: {row.value:.4g} (wanted {row.threshold}){advice}"
