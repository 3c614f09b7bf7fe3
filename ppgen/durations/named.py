"""Durations by their name."""

from ppgen.durations.durations import Durations
from ppgen.durations.negative_binomial import NegativeBinomialDurations
from ppgen.durations.poisson import PoissonDurations
from ppgen.errors import DataError

__all__ = ["chosen_durations"]


def chosen_durations(who: str, wanted: str | Durations | None, states: int, stickiness: float) -> Durations | None:
    """The durations that were asked for, where there can be some."""
    named: dict[str, type[Durations]] = {
        "negative_binomial": NegativeBinomialDurations,
        "poisson": PoissonDurations,
    }
    if wanted is None:
        return None
    if isinstance(wanted, str) and wanted not in named:
        raise DataError(f"{who}: durations must be one of {list(named)} or an object of these, got {wanted!r}")
    if states < 2 or stickiness > 0:
        raise DataError(
            f"{who}: durations need two states or more and no stickiness, got {states} and {stickiness:g}; durations "
            "say how long a state lasts"
        )
    return named[wanted]() if isinstance(wanted, str) else wanted
