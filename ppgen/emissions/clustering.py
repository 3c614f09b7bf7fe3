r"""Cluster short windows of sequences by what an emission's parameters could explain: starting points for longer runs.

Two windows are as similar as :math:`\log p(a, b) - \log p(a) - \log p(b)`, marginal likelihoods under one and two sets
of parameters, which a conjugate family has in closed form from its log-normaliser. The best pair is merged until K
remain (Heller & Ghahramani 2005, with a fixed number of clusters).
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.emissions.emission import Emission
from ppgen.families.family import Natural

__all__ = ["agglomerate", "window_counts"]

PAIRS_AT_ONCE = 4096


def window_counts(emission: Emission, windows: Float[Tensor, "W T D"]) -> Natural:
    """Sufficient statistics of each window, batch shape (W,): what it adds to the natural parameters."""
    W = len(windows)
    with torch.no_grad():
        shared = emission.family.expected(emission.prior(1))
        frames = emission.frames(windows)
        if frames is not None and frames.latent is not None:
            frames = replace(frames, moments=frames.latent.solved(emission.given(frames.latent, shared))[0])
    s = {name: v.expand(W, *v.shape[1:]).clone().requires_grad_() for name, v in shared.items()}
    potential = emission.potential(windows, s, frames)
    own = torch.arange(W)
    gradients = torch.autograd.grad(potential[own, :, own].sum(), list(s.values()))
    return dict(zip(s, gradients, strict=True))


def agglomerate(emission: Emission, counts: Natural, clusters: int) -> Int[Tensor, " W"]:
    """Label each window, merging greedily until ``clusters`` remain."""
    tree = _Tree(emission, counts)
    while len(tree.alive) > clusters:
        tree.merge()
    renumber = {old: new for new, old in enumerate(tree.alive)}
    return torch.tensor([renumber[int(label)] for label in tree.labels])


class _Tree:
    """Clusters under way: their counts, their marginal likelihoods, and the gain of merging each pair."""

    def __init__(self, emission: Emission, counts: Natural) -> None:
        self.family, prior = emission.family, emission.prior(1)
        self.prior = {name: value[0] for name, value in prior.items()}
        self.base = self.family.log_normalizer(self.prior)
        self.counts = {name: value.detach().clone() for name, value in counts.items()}
        W = len(next(iter(counts.values())))
        self.labels, self.alive = torch.arange(W), list(range(W))
        self.alone = self._evidence(self.counts)
        self.gain = torch.full((W, W), -torch.inf, dtype=torch.float64)
        for pairs in torch.triu_indices(W, W, 1).T.split(PAIRS_AT_ONCE):
            i, j = pairs.T
            self.gain[i, j] = self._gain(i, j)

    def merge(self) -> None:
        """Merge the pair that gains most."""
        i, j = divmod(int(self.gain.argmax()), len(self.labels))
        for value in self.counts.values():
            value[i] += value[j]
        self.labels[self.labels == j] = i
        self.alive.remove(j)
        self.gain[j], self.gain[:, j] = -torch.inf, -torch.inf
        self.alone[i] = self._evidence({name: value[i : i + 1] for name, value in self.counts.items()})[0]
        others = torch.tensor([other for other in self.alive if other != i], dtype=torch.long)
        here = torch.full_like(others, i)
        self.gain[torch.minimum(others, here), torch.maximum(others, here)] = self._gain(here, others)

    def _evidence(self, counts: Natural) -> Tensor:
        """Log marginal likelihood of clusters, one number each."""
        eta = {name: self.prior[name] + value for name, value in counts.items()}
        value = self.family.log_normalizer(eta) - self.base
        return value.flatten(1).sum(-1) if value.ndim > 1 else value

    def _gain(self, i: Tensor, j: Tensor) -> Tensor:
        both = self._evidence({name: value[i] + value[j] for name, value in self.counts.items()})
        return both - self.alone[i] - self.alone[j]
