"""Durations: how many steps a state of a semi-Markov model lasts."""

from ppgen.durations.durations import Durations
from ppgen.durations.negative_binomial import NegativeBinomialDurations
from ppgen.durations.poisson import PoissonDurations

__all__ = ["Durations", "NegativeBinomialDurations", "PoissonDurations"]
