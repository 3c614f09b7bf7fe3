"""What comes in: labelled arrays with NaN, pose files, alignment, principal components, simulated mice."""

from ppgen.data.arrays import as_observations, lengths, like, to_tensor

__all__ = ["as_observations", "lengths", "like", "to_tensor"]
