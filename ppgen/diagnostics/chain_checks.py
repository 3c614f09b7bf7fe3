"""Can these chains be trusted? Checks of draws and of what a sampler recorded; thresholds in `diagnostics`."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ppgen.diagnostics.convergence import MANY, Convergence, convergence
from ppgen.diagnostics.modes import modes
from ppgen.diagnostics.relabel import Alignment
from ppgen.diagnostics.verdict import MODES, Check

__all__ = ["check_chains", "check_labels", "check_modes", "check_sampler"]

Array = np.ndarray

RHAT, HIGHEST_RHAT, FALSE_ALARMS = 1.01, 1.05, 1e-3
ESS, MCSE, ODD, BETWEEN, SHAPE, MOVES = 400, 0.05, 0.3, 0.07, 0.7, 0.1
STAY, SHORTEST_STAY = 0.05, 10  # share of a chain's draws, and number of them, under which no stay is long
SHORT = 99  # steps of a chain under which its halves are too short to see that one stands still
EBFMI, EBFMI_DRAWS = 0.3, 1000
UNCLEAR_SHARE = 0.1  # of draws in which two labels could as well be exchanged


def check_chains(draws: Mapping[str, Float[Array, "C S *event"]]) -> Iterator[Check]:
    """R-hat, effective sizes, errors, tails and odd chains of every site, its worst entry; chains that did not move.

    Entries that are 0 or 1 in every draw are constant by construction (a triangle's zeros, the one probability of a
    single state) and left out; any other constant is a failure, and so is it if nothing moves at all.
    """
    values = {site: np.asarray(value, dtype=float) for site, value in draws.items()}
    moving = {site: value for site, value in values.items() if value.size and not _constant(value).all()}
    if not moving:
        yield Check("moving chains", 0.0, "= 100%", False, "no chain ever moved: the start or the step size is bad")
    rate = FALSE_ALARMS / max(1, sum(int((~_constant(value)).sum()) for value in moving.values()))
    for number, (site, value) in enumerate(moving.items()):
        entry = _entries(value)
        if number == 0:
            yield _distinct(entry[0])
        yield from _check_site(site, entry, rate)
    if moving:
        yield _stay_check([_entries(value) for value in moving.values()])


def check_modes(
    draws: Mapping[str, Float[Array, "C S *event"]], lp: Float[Array, "C S"] | None = None
) -> Iterator[Check]:
    """Check that all chains are in one mode; labels must have been aligned, ``lp`` is the log density."""
    values = {site: np.asarray(value, dtype=float) for site, value in draws.items()}
    values = {site: value for site, value in values.items() if value.size}
    if not values or len(next(iter(values.values()))) < 2:
        return
    if not all(np.isfinite(value).all() for value in values.values()):
        yield Check(MODES, math.nan, "= 1", False, "draws are not finite, so modes cannot be found")
        return
    found = modes(values)
    mixed = (
        "How many chains are in each says where they began, not what it weighs. Modes that differ in the numbering of "
        "labels are one: relabel; from a trap, start the chains elsewhere; real ones need more data, a prior that "
        "decides, or a weight found by other means"
    )
    advice = mixed if max(found.counts) > 1 else "They have not mixed at all: start them better, tune for longer"
    count = len(found.counts)
    yield Check(MODES, float(count), "= 1", count == 1, f"{found.words(lp)}. {advice}")


def check_sampler(stats: Mapping[str, Shaped[Array, "C S"]]) -> Iterator[Check]:
    """Divergences and the energy of a Hamiltonian sampler, from its records ``diverging`` and ``energy``."""
    if "diverging" in stats:
        flags = np.asarray(stats["diverging"], dtype=float)
        count = float(flags.sum()) if flags.size else math.nan
        yield Check(
            "divergences",
            count,
            f"of {flags.size:,} draws (wanted 0)",
            count == 0,
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


def check_labels(name: str, alignment: Alignment, moved: float | None = None) -> Iterator[Check]:
    """Check that the labels called ``name`` can be told apart; how much they switched is reported and is no failure.

    ``moved`` is the share of draws that had other numbers, where they were aligned before.
    """
    unclear = alignment.unclear
    yield Check(
        f"labels of {name}",
        unclear,
        f"<= {UNCLEAR_SHARE:.0%} of draws with two that could be exchanged",
        unclear <= UNCLEAR_SHARE,
        f"some of them cannot be told apart, and a summary of one alone means little: fewer ({name}), a prior that "
        "separates them, or only what does not depend on labels",
    )
    yield Check(f"label switching of {name}", alignment.moved if moved is None else moved, "said, aligned", True, "")


def _check_site(site: str, entry: Float[Array, "P C S"], rate: float) -> Iterator[Check]:
    """Every line about one site."""
    moved = _moved(entry)
    advice = "a chain (or an entry of all) never moved: its start or step size is bad"
    if not np.isfinite(entry).all():
        advice = f"{np.isfinite(entry).mean():.2%} of draws are finite: the density or its gradient is not"
    yield Check(f"moving chains of {site}", moved, "= 100%", moved == 1.0, advice)
    known = convergence(entry if moved == 1.0 else entry[:, :, :0], rate)
    yield _rhat_check(site, entry.shape[1], known)
    for kind, sizes in (("bulk", known.bulk), ("tail", known.tail)):
        ess = float(sizes.min())
        yield Check(f"ESS ({kind}) of {site}", ess, f">= {ESS}", ess >= ESS, "too few independent draws: more draws")
    error = float(np.max(1 / np.sqrt(known.mean)))
    yield Check(
        f"MCSE of {site}", error, f"<= {MCSE} sd", error <= MCSE, "the mean is not known well enough: more draws"
    )
    shape = float(known.shape.max())
    yield Check(
        f"tail shape of {site}",
        shape,
        f"<= {SHAPE}",
        shape <= SHAPE,
        "tails so heavy that its mean and sd are not to be had: quote quantiles, or give it a prior with lighter tails",
    )
    worst = int(np.argmax(known.apart))
    yield Check(
        f"odd chain of {site}",
        float(known.apart[worst]),
        f"<= {ODD} sd from the rest, or chance",
        bool(known.apart[worst] <= ODD),
        "chains did not move, nothing can be said"
        if math.isnan(known.odd[worst])
        else f"chain {known.odd[worst]:.0f} is elsewhere than the others, or wider or narrower: look at it alone",
    )
    yield Check(
        f"chain means of {site}",
        float(known.between.max()),
        f"<= {BETWEEN} sd between them beyond their errors",
        bool((known.between <= BETWEEN).all()),
        "chains differ by more than they should after so many draws: run longer, or look whether some are stuck",
    )


def _stay_check(sites: list[Float[Array, "_ C S"]]) -> Check:
    """The longest time that a chain stood still in a site, beside what the moves it made otherwise explain.

    Samplers that reject stand still at times; stays as long as that are rare. A site that comes back to values it left,
    as one of whole numbers does, is left out.
    """
    if not all(np.isfinite(site).all() for site in sites):
        return Check("longest stay", math.nan, "that of rejections", False, "some draws are not finite")
    stays = [stay for site in sites if not _comes_back(site[0]) for stay in [(np.diff(site, axis=2) == 0).all(0)]]
    longest = np.array([_longest_runs(stay) for stay in stays]).reshape(len(stays), sites[0].shape[1])
    chance = np.array([_log_chance(stay, runs) for stay, runs in zip(stays, longest, strict=True)]).reshape(
        longest.shape
    )
    least = max(SHORTEST_STAY, math.ceil(STAY * sites[0].shape[2]))
    long = (longest >= least) & (chance < math.log(FALSE_ALARMS / max(1, len(stays))))
    value = longest[long].max() if long.any() else longest.max(initial=0)
    chain = int(np.argmax(np.where(long, longest, -1).max(0, initial=-1))) if long.any() else 0
    return Check(
        "longest stay",
        float(value),
        f"< {least} draws, or what rejections explain",
        not bool(long.any()),
        f"chain {chain} stood still for {value:.0f} of its {sites[0].shape[2]:,} draws: smaller steps (raise "
        "target_accept), or look at where it was stuck",
    )


def _comes_back(value: Float[Array, "C S"]) -> bool:
    """Tell whether values that a chain had left come again, in one arrival out of ten or more."""
    arrivals = np.diff(value, axis=1, prepend=np.nan) != 0
    distinct = sum(len(np.unique(chain)) for chain in value)
    return bool(distinct < 0.9 * arrivals.sum())


def _longest_runs(flags: Bool[Array, "C n"]) -> Int[Array, " C"]:
    """Longest run of true flags in each row."""
    place = np.arange(1, flags.shape[1] + 1)
    return (place - np.maximum.accumulate(np.where(flags, 0, place), axis=1)).max(1, initial=0)


def _log_chance(stays: Bool[Array, "C n"], longest: Int[Array, " C"]) -> Float[Array, " C"]:
    """Log probability, at most, of so long a stay in any chain, if steps stay as often as in the rest of the draws."""
    steps, rest = stays.shape[1] - longest, stays.sum(1) - longest
    share = np.maximum((rest + 1) / (steps + 2), (rest.sum() + 1) / (steps.sum() + 2))
    return math.log(max(1, stays.size)) + longest * np.log(share)


def _distinct(entry: Float[Array, "C S"]) -> Check:
    """Chains that repeat each other are one: a seed was shared."""
    count = len(np.unique(entry, axis=0))
    needed = len(entry)
    return Check("distinct chains", count, f"= {needed}", count == needed, "chains repeat each other: give other seeds")


def _rhat_check(site: str, chains: int, known: Convergence) -> Check:
    """R-hat of the entry that is worst beside what chance allows it."""
    limits = np.clip(known.noise, RHAT, HIGHEST_RHAT)
    worst = int(np.argmax(known.rhat - limits))
    value, limit = float(known.rhat[worst]), float(limits[worst])
    chance = "" if limit == RHAT else ", by chance"
    name = "R-hat" if chains < MANY else "nested R-hat"
    advice = (
        "one chain cannot check itself: run four or more"
        if chains == 1
        else "chains disagree: run longer (tune, draws)"
    )
    return Check(f"{name} of {site}", value, f"<= {limit:.3g}{chance}", value <= limit, advice)


def _constant(value: Float[Array, "C S *event"]) -> Bool[Array, " P"]:
    """Entries that are 0 or 1, to rounding, in every draw."""
    flat = value.reshape(*value.shape[:2], -1)
    return (np.ptp(flat, axis=(0, 1)) == 0) & ((flat[0, 0] == 0) | (abs(flat[0, 0] - 1) <= 1e-12))


def _entries(value: Array) -> Float[Array, "P C S"]:
    """Draws of each entry, without those that are constant by construction."""
    flat = np.moveaxis(value.reshape(*value.shape[:2], -1), -1, 0)
    return flat[~_constant(value)]


def _moved(entry: Float[Array, "P C S"]) -> float:
    """Share of chains that move: every entry, and at one step in ten of each half. NaN where a draw is not finite."""
    if not np.isfinite(entry).all():
        return math.nan
    moves = np.diff(entry, axis=2) != 0
    if not moves.size:
        return 0.0
    parts = np.array_split(moves.mean(0), 1 if moves.shape[2] < SHORT else 2, axis=1)
    return float((moves.any(2).all(0) & (np.min([part.mean(1) for part in parts], 0) >= MOVES)).mean())


def _ebfmi(energy: Float[Array, "C S"]) -> float:
    """Mean squared change of energy over its variance, of the worst group of chains with draws enough."""
    C, S = energy.shape
    if S < 3 or not np.isfinite(energy).all():
        return math.nan
    changes, variances = (np.diff(energy, axis=1) ** 2).mean(1), energy.var(1, ddof=1)
    groups = np.array_split(np.arange(C), max(1, C // math.ceil(EBFMI_DRAWS / S)))
    if not (variances > 0).all():
        return math.nan
    return float(min(changes[group].mean() / variances[group].mean() for group in groups))
