"""Figures, one function each, from labelled arrays and tables. None closes or restyles anything of yours.

Without ``ax`` each draws a new figure of pyplot's, which a notebook shows at the end of the cell and a script at
``plt.show()``. In a notebook end the line with ``;`` where a function gives back the figure, or it is shown twice.
"""

from ppgen.plots.bodies import trajectories
from ppgen.plots.fits import elbo, missing, predictive_check, stickiness_search
from ppgen.plots.groups import agreement, group_usage
from ppgen.plots.syllables import durations, ethogram, transition_graph, usage

__all__ = [
    "agreement", "durations", "elbo", "ethogram", "group_usage", "missing", "predictive_check", "stickiness_search",
    "trajectories", "transition_graph", "usage",
]  # fmt: skip
