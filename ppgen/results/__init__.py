"""Results of a fit: labelled answers, ArviZ's DataTree, and folders on disk."""

from ppgen.results.entries import by_entry
from ppgen.results.fit import Fit, fit_result, load
from ppgen.results.posterior import Draws, Factors

__all__ = ["Draws", "Factors", "Fit", "by_entry", "fit_result", "load"]
