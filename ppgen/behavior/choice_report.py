"""The report of a study of decisions: what predicts best, which strategies there are, and when each is followed."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from ppgen.behavior.choices import Trials
from ppgen.behavior.report import Section
from ppgen.behavior.strategies import Study, psychometric, weights_table
from ppgen.plots.choices import compared, psychometric_curves, strategies, strategy_weights
from ppgen.plots.style import apart

__all__ = ["choice_sections", "recovered", "trials_table"]

SHOWN = 4  # sessions that are drawn
REACH = 2.5  # standard deviations of a stimulus that curves are drawn over


@apart()
def choice_sections(study: Study, trials: Trials) -> list[Section]:
    """What predicts best, what each strategy does, when it is followed, how they follow each other, and the truth."""
    weights = weights_table(study.fit, trials.inputs)
    points = np.linspace(-REACH, REACH, 101)
    own = points * trials.spread[0] + trials.center[0]
    middle, interval = psychometric(study.fit, 0, points)
    moves = study.fit.to_arviz(draws=400).posterior["transition"].mean(("chain", "draw")).to_numpy()
    names = [f"state {k}" for k in range(study.states)]
    shown = {name: study.probabilities[s, : trials.lengths[s]] for s, name in enumerate(trials.sessions[:SHOWN])}
    use = pd.DataFrame({"share of trials": np.nanmean(study.probabilities, (0, 1))}, names)
    return [
        Section(
            "In short",
            [
                f"{len(trials.sessions)} sessions, {int((~np.isnan(trials.x)).sum())} choices, "
                f"{study.states} {'strategy' if study.states == 1 else 'strategies'}. Models were compared by the "
                f"sessions {', '.join(study.held_out)}, which they had not seen.",
            ],
            [compared(study.table["held out"])],
            [study.table],
            _verdict(study),
        ),
        *([] if trials.truth is None else [recovered(study, trials.truth)]),
        Section(
            "What each strategy does",
            [
                "Curves are for the other inputs at their mean; bands and bars hold 90 % of the posterior. Weights are "
                "log odds of choice 1 for one standard deviation of an input."
            ],
            [psychometric_curves(own, middle, interval, trials.inputs[0]), strategy_weights(weights)],
            [use],
        ),
        Section("When each is followed", ["The first sessions."], [strategies(shown)]),
        Section(
            "How they follow each other",
            ["Probability of the strategy of the next trial (columns) given that of this one (rows)."],
            tables=[pd.DataFrame(moves, names, names)],
        ),
    ]


def recovered(study: Study, truth: np.ndarray) -> Section:
    """How many trials are in the strategy (S, T) that was simulated, matched to the states as well as can be."""
    there = (truth >= 0) & ~np.isnan(study.probabilities[..., 0])
    found, true = study.probabilities.argmax(-1)[there], truth[there]
    counts = np.zeros((study.states, true.max() + 1))
    np.add.at(counts, (found, true), 1)
    share = counts[linear_sum_assignment(-counts)].sum() / counts.sum()
    return Section(
        "Against the truth",
        ["These choices were simulated. A row is a state found, a column a strategy that was simulated."],
        tables=[pd.DataFrame(counts.astype(int))],
        verdict=(f"{share:.0%} of the trials are in the state matched to their strategy.", bool(share > 0.8)),
    )


def trials_table(study: Study, trials: Trials) -> pd.DataFrame:
    """A row for each trial: session, number, choice, the most probable state, and the probability of each."""
    rows = []
    for s, name in enumerate(trials.sessions):
        n = trials.lengths[s]
        own = pd.DataFrame(study.probabilities[s, :n], columns=[f"probability {k}" for k in range(study.states)])
        own.insert(0, "state", study.probabilities[s, :n].argmax(-1))
        own.insert(0, "choice", trials.x[s, :n, 0])
        own.insert(0, "trial", np.arange(n))
        own.insert(0, "session", name)
        rows.append(own)
    return pd.concat(rows, ignore_index=True)


def _verdict(study: Study) -> tuple[str, bool]:
    held = study.table["held out"]
    best, one = held.idxmax(), held["logistic regression"]
    gain = float(held.max() - one)
    if best == "logistic regression":
        return "One strategy predicts as well as several: there is no sign of states in these choices.", False
    return f"{best} predict best, {gain:.3f} bits a trial better than one logistic regression.", True
