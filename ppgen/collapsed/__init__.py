"""Pyro distributions over data whose latents are summed out, or held in blocks."""

from ppgen.collapsed.base import Collapsed
from ppgen.collapsed.block import Block, GaussianBlock
from ppgen.collapsed.hidden_markov import HiddenMarkov

__all__ = ["Block", "Collapsed", "GaussianBlock", "HiddenMarkov"]
