"""Labelled arrays, in which NaN is what was not observed: the form that all data take when they come in."""

from ppgen.data.arrays import as_observations, lengths, like, to_tensor

__all__ = ["as_observations", "lengths", "like", "to_tensor"]
