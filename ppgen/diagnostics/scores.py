"""Scores of predictive draws against what came: continuous ranked probability, and how much intervals hold."""

import numpy as np
from jaxtyping import Float

__all__ = ["LEVELS", "predictive_scores"]

LEVELS = (0.5, 0.8, 0.95)


def predictive_scores(draws: Float[np.ndarray, "S n"], truth: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Continuous ranked probability score, and the share of values within central intervals, by ``in 50%`` and so on.

    The score is the unbiased estimate from draws of Gneiting & Raftery (2007), eq. 21: E|X - y| - E|X - X'| / 2.
    """
    draws, S = np.sort(draws, 0), len(draws)
    weights = (2 * np.arange(1, S + 1) - S - 1) / (S * (S - 1))
    found = {"crps": float((np.abs(draws - truth).mean(0) - (weights[:, None] * draws).sum(0)).mean())}
    for level in LEVELS:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        found[f"in {level:.0%}"] = float(((low <= truth) & (truth <= high)).mean())
    return found
