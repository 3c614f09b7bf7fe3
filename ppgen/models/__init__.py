"""Models, one a file."""

from ppgen.models.hmm import HMM

__all__ = ["HMM"]
