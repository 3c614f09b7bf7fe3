"""What comes in: labelled arrays, in which NaN is what was not observed."""

from ppgen.data.arrays import as_observations, lengths, like, to_tensor

__all__ = ["as_observations", "lengths", "like", "to_tensor"]
