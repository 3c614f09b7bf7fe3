"""Trust in a fit of syllables: the checks of any fit, and those that only recordings of movement allow."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.behavior.fitting import FIRST_STEPS, WHOLE, Study
from ppgen.behavior.numbering import selected
from ppgen.behavior.summaries import SPEED, replicates
from ppgen.diagnostics.verdict import Check, Report, report

__all__ = ["check_movement", "check_rare", "simulate", "trust"]

CHECK_DRAWS = 25  # draws behind the comparison with the exact posterior, each of which costs a pass over all the data
FEW, RARE_SHARE = 5, 0.05  # instances below which a syllable is rare, and the share of the time that rare ones may take
# How far the speed of simulated animals may be off, which speed, and at how many body lengths one has left.
FACTOR, QUANTILE, AWAY = 3.0, 0.99, 10.0


def trust(study: Study, table: pd.DataFrame, replicas: pd.DataFrame, gone: Sequence[bool]) -> Report:
    """The verdict on a fit.

    Parameters
    ----------
    study : the fit, whose states are numbered as its syllables.
    table : one row per syllable that is used, as :func:`ppgen.behavior.segments.summary` gives it.
    replicas, gone : simulated beside recorded movement, and which simulated sets left, as :func:`simulate` gives them.
    """
    few = sum(map(len, study.x.values())) <= WHOLE  # of more data the comparison would be too slow
    known = study.pipeline.fit.diagnose(study.x if few else None, CHECK_DRAWS, random_seed=0)
    old = [Check(*row) for row in known.table.itertuples(index=False)]
    new = [*check_movement(replicas, gone), *check_rare(table)]
    notes = [known.verdict.removeprefix(report(old).verdict).strip(), _rare_words(table), _starts_words(study.starts)]
    found = report([*old, *new], [note for note in notes if note])
    return Report(found.ok and known.ok, found.verdict, found.table)


def simulate(
    study: Study, table: pd.DataFrame, checked: Mapping[str, np.ndarray], axes: int, draws: int
) -> tuple[pd.DataFrame, list[bool]]:
    """Simulated beside recorded movement (:func:`ppgen.behavior.summaries.replicates`), and which sets left.

    The model moves between the syllables it has seen :data:`FEW` times or more, or all that were used where none was.
    Only the prior knows how the others move, and in it bodies need not stay near their pose.
    """
    often = table.index[table["instances"] >= FEW].to_list() or table.index.to_list()
    fit, fps = selected(study.pipeline.fit, often), float(study.pipeline.settings["fps"])
    simulated = cast(xr.DataArray, fit.posterior_predictive(dict(checked), draws=draws, random_seed=0))
    return replicates(simulated, checked, axes, fps), _gone(simulated, checked)


def check_movement(replicas: pd.DataFrame, gone: Sequence[bool]) -> list[Check]:
    """Simulated animals stay where bodies are, and move about as fast as the recorded ones."""
    speed = replicas[replicas["statistic"] == SPEED].groupby("draw")["value"].quantile(QUANTILE)
    recorded = float(speed.get(-1, np.nan))
    ratio = float(speed[speed.index >= 0].median()) / recorded if recorded > 0 else np.nan
    advice = "the model does not move as your animals do: quote no simulation or forecast, and judge labels by eye"
    left = float(np.mean(gone)) if len(gone) else np.nan
    return [
        Check("simulated sets that run away", left, "= 0", left == 0, advice),
        Check(
            "simulated speed over recorded",
            ratio,
            f"1/{FACTOR:g} to {FACTOR:g}",
            1 / FACTOR <= ratio <= FACTOR,
            advice,
        ),
    ]


def check_rare(table: pd.DataFrame) -> list[Check]:
    """Syllables that were hardly seen are left-overs rather than movements; they may take little of the time."""
    share = float(table.loc[table["instances"] < FEW, "usage"].sum())
    advice = "most of these are left-overs, not movements: give more recordings, fewer --states, or a longer target"
    return [
        Check(
            f"time in syllables seen fewer than {FEW} times",
            share,
            f"<= {RARE_SHARE:.0%}",
            share <= RARE_SHARE,
            advice,
        )
    ]


def _gone(simulated: xr.DataArray, checked: Mapping[str, np.ndarray]) -> list[bool]:
    """Tell for each draw whether a body part was ever farther away than bodies are; a draw with NaN counts as such."""
    drawn = simulated.transpose("draw", "sequence", "time", "feature").to_numpy()
    far = max(AWAY, 3 * max(float(np.nanmax(np.abs(x), initial=0.0)) for x in checked.values()))
    parts = [drawn[:, i, : len(x)] for i, x in enumerate(checked.values())]
    return [not all(bool((np.abs(part[draw]) <= far).all()) for part in parts) for draw in range(len(drawn))]


def _rare_words(table: pd.DataFrame) -> str:
    rare = table.index[table["instances"] < FEW].to_list()
    if not rare:
        return ""
    names = ", ".join(map(str, rare))
    few = f"{len(rare)} of {len(table)} syllables were seen fewer than {FEW} times: {names}"
    return f"{few}. Draw no conclusion from them."


def _starts_words(starts: Sequence[float]) -> str:
    """Describe other optima: the last fit has one start, the best one of the search."""
    words = "Whether another start ends in a better optimum is shown by fitting again with another --seed, and by match"
    if len(starts) < 2:
        return f"{words}."
    apart = max(starts) - sorted(starts)[-2]
    return (
        f"{words}: of the search's {len(starts)} starts the best after {FIRST_STEPS} steps was continued, the second "
        f"was {apart:,.0f} nats behind."
    )
