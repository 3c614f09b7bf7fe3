"""Figures, one function each, from labelled arrays and tables. None shows, closes or restyles anything of yours."""

from ppgen.plots.bodies import trajectories
from ppgen.plots.fits import elbo, missing, predictive_check, stickiness_search
from ppgen.plots.groups import agreement, group_usage
from ppgen.plots.syllables import durations, ethogram, transition_graph, usage

__all__ = [
    "agreement", "durations", "elbo", "ethogram", "group_usage", "missing", "predictive_check", "stickiness_search",
    "trajectories", "transition_graph", "usage",
]  # fmt: skip
