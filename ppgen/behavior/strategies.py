"""How many strategies there are behind choices, by the sessions held out; and which one each trial follows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd

from ppgen.behavior.choices import Trials
from ppgen.errors import DataError
from ppgen.inference import svi
from ppgen.models import IOHMM, MixtureOfExperts
from ppgen.results import Fit

__all__ = ["Study", "psychometric", "study", "weights_table"]

STARTS = 5  # restarts of each point fit
GUIDE = "full_rank"  # of the last fit: its weights have intervals


@final
@dataclass(frozen=True)
class Study:
    """What was compared, and the fit of what predicts best.

    Attributes
    ----------
    table : a row for each model: bits a trial better than a coin, in sessions fitted and held out.
    fit : the hidden Markov model with the best number of states, fitted to all sessions; states in order of use.
    probabilities : (S, T, K) of the states at each trial, NaN behind the end of a session.
    held_out : names of the sessions that were held out.
    """

    table: pd.DataFrame
    fit: Fit
    probabilities: np.ndarray
    held_out: tuple[str, ...]

    @property
    def states(self) -> int:
        """Number of strategies."""
        return self.probabilities.shape[-1]


def study(
    trials: Trials, most: int = 4, random_seed: int = 0, say: Callable[[str], None] = lambda words: None
) -> Study:
    """Compare models by sessions held out, every fifth one, and fit the best to all.

    The models are generalised linear hidden Markov models of 1 (a logistic regression) to ``most`` states, and a
    mixture of two experts, in which trials do not depend on the state before.
    """
    count = len(trials.sessions)
    if count < 2:
        raise DataError(
            f"decisions: there must be at least two sessions, of which one is held out, got {count}; name a column "
            "that tells sessions apart, such as the day, or the block"
        )
    out = list(range(count))[4::5] or [count - 1]
    inside = [s for s in range(count) if s not in out]
    train, test = trials.of(inside), trials.of(out)
    rows = {}
    for K in range(1, most + 1):
        say(f"fitting {K} {'strategy' if K == 1 else 'strategies'}")
        fit = _point(_model(K, trials), train.x, train.u, random_seed)
        rows["logistic regression" if K == 1 else f"{K} states"] = _bits(fit, train, test)
    say("fitting a mixture of experts")
    rows["2 experts, trials apart"] = _experts(train, test, random_seed)
    table = pd.DataFrame(rows, index=["fitted", "held out"]).T
    best = 1 + int(np.argmax([table["held out"].iloc[K] for K in range(most)]))
    say(f"{best} {'strategy predicts' if best == 1 else 'strategies predict'} best; fitting all sessions")
    fit = svi.fit(_model(best, trials), trials.x, u=trials.u, guide=GUIDE, random_seed=random_seed, progressbar=False)
    if best > 1:
        fit = fit.order("state", by="z", x=trials.x, u=trials.u, descending=True)
    z = fit.latents(trials.x, u=trials.u, draws=50)["z"].to_numpy()
    return Study(table, fit, z, tuple(test.sessions))


def psychometric(fit: Fit, stimulus: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of choice 1 by each state for ``values`` of one input, the others zero: medians, and 90 % intervals.

    Of shapes (K, V) and (2, K, V).
    """
    draws = fit.to_arviz(draws=400).posterior["weights"].to_numpy()
    weights = draws.reshape(-1, *draws.shape[2:])[:, :, 0]
    drive = weights[..., stimulus, None] * values + weights[..., -1, None]
    low, middle, high = np.quantile(1 / (1 + np.exp(-drive)), [0.05, 0.5, 0.95], axis=0)
    return middle, np.stack([low, high])


def _model(states: int, trials: Trials) -> IOHMM:
    return IOHMM(states, len(trials.inputs), 1, emission="bernoulli", transition_inputs=False)


def _point(model: IOHMM | MixtureOfExperts, x: np.ndarray, u: np.ndarray, random_seed: int) -> Fit:
    return svi.fit(model, x, u=u, guide="map", n_init=STARTS, random_seed=random_seed, progressbar=False)


def _bits(fit: Fit, *parts: Trials) -> list[float]:
    return [_better(float(fit.log_likelihood(own.x, u=own.u, random_seed=0).sum()), own.x) for own in parts]


def _experts(train: Trials, test: Trials, random_seed: int) -> list[float]:
    rows = [(own.x.reshape(-1, 1), own.u.reshape(-1, own.u.shape[-1])) for own in (train, test)]
    seen = [(x[~np.isnan(x[:, 0])], u[~np.isnan(x[:, 0])]) for x, u in rows]
    fit = _point(MixtureOfExperts(2, len(train.inputs), 1, likelihood="bernoulli"), *seen[0], random_seed)
    return [_better(float(fit.log_likelihood(x, u=u, random_seed=0).sum()), x) for x, u in seen]


def _better(log_likelihood: float, x: np.ndarray) -> float:
    """Bits a trial more than those of a coin."""
    return 1.0 + log_likelihood / math.log(2) / int((~np.isnan(x)).sum())


def weights_table(fit: Fit, inputs: Sequence[str]) -> pd.DataFrame:
    """Weight of each input in each state: median and 90 % interval; choices are per standard deviation of an input."""
    draws = fit.to_arviz(draws=400).posterior["weights"].to_numpy()
    flat = draws.reshape(-1, *draws.shape[2:])[:, :, 0]
    rows = [
        {"state": k, "input": name, "weight": middle, "from": low, "to": high}
        for k in range(flat.shape[1])
        for name, (low, middle, high) in zip(
            [*inputs, "bias"], np.quantile(flat[:, k], [0.05, 0.5, 0.95], axis=0).T, strict=True
        )
    ]
    return pd.DataFrame(rows)
