"""Pyro distributions over whole sequences, their latents summed out."""

from ppgen.collapsed.hidden_markov import HiddenMarkov

__all__ = ["HiddenMarkov"]
