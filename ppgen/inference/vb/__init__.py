"""Variational Bayes of conjugate models."""

from ppgen.inference.vb.engine import fit

__all__ = ["fit"]
