r"""The no-U-turn sampler, multinomial, all chains in one tensor.

A trajectory doubles, forwards or backwards at random, until it turns back on itself. Chains double in step, so that a
tree is a loop over its leaves, a stack of finished subtrees replaces the recursion, and a chain that has turned is a
masked row. Subtrees are joined only if neither they, nor their parts next to the seam, have turned.

A leaf of energy H has the weight :math:`w = e^{H_0 - H}`, with :math:`H_0` that of the start. A new leaf becomes the
draw of its subtree with probability :math:`w / \sum w`, and the draw of a subtree becomes that of the tree with
probability :math:`\min(1, W_\text{subtree} / W_\text{tree})`. A span with momenta p at its ends, whose momenta sum to
:math:`\rho`, has turned where :math:`p' \rho \le 0` at either end.

References: Hoffman & Gelman (2014); Betancourt (2017); Stan Development Team (2024) for the checks at the seam; Phan,
Pradhan & Jankowiak (2019) for the loop.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppgen.inference.mcmc.adaptation import Tuning
from ppgen.inference.mcmc.hamiltonian import DIVERGENCE, NAMES, Ensemble, Leapfrog, Record, record

__all__ = ["Nuts"]

# Adapted chain by chain from noisy rates, 0.8 ends near 0.88 in other samplers; from the mean of all chains it would be
# met, with five times the divergent draws on eight schools.
TARGET = 0.88
LOOK_EVERY = 8  # leaves between two looks at whether any chain still grows


@final
class Nuts:
    """One transition of every chain. It keeps no state: positions of chains and tuning are passed in."""

    names: ClassVar[tuple[str, ...]] = (*NAMES, "tree_depth")

    def __init__(self, leapfrog: Leapfrog, target: float | None = None, max_depth: int = 10) -> None:
        self.leapfrog, self.max_depth = leapfrog, max_depth
        self.target = TARGET if target is None else target

    def transition(
        self, ensemble: Ensemble, tuning: Tuning, generator: torch.Generator, *, adapt: bool
    ) -> tuple[Ensemble, Record]:
        """Move every chain once; while ``adapt``, learn from it.

        The numbers a chain gets do not depend on how long the trees of others are: each transition has a stream of its
        own, and every chain takes part in each draw from it.
        """
        stream = _stream(generator)
        step = tuning.step.now if adapt else tuning.step.final
        momentum = torch.randn(ensemble.v.shape, generator=stream, dtype=ensemble.v.dtype, device=ensemble.v.device)
        tree = _Tree(ensemble, momentum)
        for depth in range(self.max_depth):
            subtree = self._grow(tree, depth, step, tuning.factor, stream)
            tree.join(subtree, stream)
            if not tree.growing.any():
                break
        acceptance = tree.acceptance / tree.leaves.clamp_min(1)
        if adapt:
            trusted = torch.isfinite(ensemble.value)
            tuning.step.learn(float(acceptance[trusted].mean()) if trusted.any() else 0.0, self.target)
        noted = record(tree.proposal, tree.energy, acceptance, tree.diverging, tree.leaves, step)
        return tree.proposal, noted | {"tree_depth": tree.depth}

    def _grow(self, tree: "_Tree", depth: int, step: float, factor: Tensor, stream: torch.Generator) -> "_Subtree":
        """Add ``2**depth`` leaves on the side each chain drew."""
        forwards = _uniform(tree.energy, stream) < 0.5
        ensemble, momentum = tree.end(forwards)
        size = (step * torch.where(forwards, 1.0, -1.0).to(tree.energy.dtype))[:, None]
        subtree = _Subtree(
            forwards, tree.growing.clone(), torch.full_like(tree.energy, -math.inf), ensemble, tree.energy, ensemble
        )
        for leaf in range(2**depth):
            ensemble, momentum = self.leapfrog(ensemble, momentum, size, 1, factor)
            self._add(tree, subtree, ensemble, momentum, stream)
            if leaf % LOOK_EVERY == LOOK_EVERY - 1 and not subtree.whole.any():
                break
        return subtree

    @staticmethod
    def _add(tree: "_Tree", subtree: "_Subtree", ensemble: Ensemble, momentum: Tensor, stream: torch.Generator) -> None:
        """Add a leaf: its weight, the choice of the subtree's draw, and the turns that it completes."""
        energy = 0.5 * momentum.square().sum(-1) - ensemble.value
        gain = torch.nan_to_num(tree.start_energy - energy, nan=-math.inf, posinf=-math.inf)
        tree.acceptance += torch.where(subtree.whole, gain.clamp_max(0.0).exp(), 0.0)
        tree.leaves += subtree.whole
        diverged = subtree.whole & (gain < -DIVERGENCE)
        tree.diverging |= diverged
        subtree.whole = subtree.whole & ~diverged
        weight = torch.logaddexp(subtree.weight, gain)
        taken = subtree.whole & (_uniform(gain, stream).log() < gain - weight)
        subtree.weight = torch.where(subtree.whole, weight, subtree.weight)
        subtree.proposal = subtree.proposal.moved(taken, ensemble)
        subtree.energy = torch.where(taken, energy, subtree.energy)
        subtree.ensemble = ensemble
        subtree.push(_Span(momentum, momentum, momentum, 0))


class _Span(NamedTuple):
    """A finished subtree in the order of its integration: momenta at both ends, their sum, its depth."""

    first: Float[Tensor, "C P"]
    last: Float[Tensor, "C P"]
    total: Float[Tensor, "C P"]
    depth: int


@dataclass
class _Subtree:
    """New leaves for a tree; ``whole`` says in which chains they have neither turned nor diverged."""

    forwards: Bool[Tensor, " C"]
    whole: Bool[Tensor, " C"]
    weight: Float[Tensor, " C"]
    proposal: Ensemble
    energy: Float[Tensor, " C"]
    ensemble: Ensemble
    spans: list[_Span] = field(default_factory=list)

    def push(self, span: _Span) -> None:
        """Add a leaf, and join equals from the right as a binary counter carries."""
        while self.spans and self.spans[-1].depth == span.depth:
            left = self.spans.pop()
            self.whole = self.whole & ~_turns(left, span)
            span = _Span(left.first, span.last, left.total + span.total, span.depth + 1)
        self.spans.append(span)


class _Tree:
    """The trajectory of every chain: its two ends, the sum of its momenta, its weight and its draw so far."""

    def __init__(self, ensemble: Ensemble, momentum: Tensor) -> None:
        self.left, self.right = (ensemble, momentum), (ensemble, momentum)
        self.total, self.proposal = momentum, ensemble
        self.start_energy = 0.5 * momentum.square().sum(-1) - ensemble.value
        self.energy, self.weight = self.start_energy, torch.zeros_like(ensemble.value)
        self.growing = torch.isfinite(ensemble.value)
        self.diverging = torch.zeros_like(self.growing)
        self.acceptance = torch.zeros_like(ensemble.value)
        self.leaves = torch.zeros_like(self.growing, dtype=torch.int64)
        self.depth = torch.zeros_like(self.leaves)

    def end(self, forwards: Bool[Tensor, " C"]) -> tuple[Ensemble, Tensor]:
        """Position and momentum at the right end, or the left one."""
        (left, slow), (right, fast) = self.left, self.right
        return left.moved(forwards, right), torch.where(forwards[:, None], fast, slow)

    def join(self, subtree: _Subtree, stream: torch.Generator) -> None:
        """Take in a whole subtree (biased towards its draw), and see whether the tree has turned."""
        forwards, whole = subtree.forwards, subtree.whole
        span, row = subtree.spans[-1], whole[:, None]
        taken = whole & (_uniform(self.weight, stream).log() < subtree.weight - self.weight)
        self.proposal = self.proposal.moved(taken, subtree.proposal)
        self.energy = torch.where(taken, subtree.energy, self.energy)
        self.weight = torch.where(whole, torch.logaddexp(self.weight, subtree.weight), self.weight)
        far, near = self.end(~forwards)[1], self.end(forwards)[1]  # momenta away from the seam, and at it
        turned = _turns(_Span(far, near, self.total, span.depth), span)
        self.total = torch.where(row, self.total + span.total, self.total)
        self.depth += self.growing
        self.growing = whole & ~turned
        self.right = _moved(self.right, whole & forwards, subtree.ensemble, span.last)
        self.left = _moved(self.left, whole & ~forwards, subtree.ensemble, span.last)


def _moved(
    end: tuple[Ensemble, Tensor], rows: Bool[Tensor, " C"], ensemble: Ensemble, momentum: Tensor
) -> tuple[Ensemble, Tensor]:
    return end[0].moved(rows, ensemble), torch.where(rows[:, None], momentum, end[1])


def _turns(left: _Span, right: _Span) -> Bool[Tensor, " C"]:
    """Tell whether two neighbours together turn back, or either together with the other's momentum at the seam."""
    return (
        _turned(left.first, right.last, left.total + right.total)
        | _turned(left.first, right.first, left.total + right.first)
        | _turned(left.last, right.last, right.total + left.last)
    )


def _turned(first: Tensor, last: Tensor, total: Tensor) -> Bool[Tensor, " C"]:
    return ((first * total).sum(-1) <= 0) | ((last * total).sum(-1) <= 0)


def _stream(generator: torch.Generator) -> torch.Generator:
    """A stream for one transition, from one number of the run's."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(generator.device).manual_seed(seed)


def _uniform(like: Float[Tensor, " C"], stream: torch.Generator) -> Float[Tensor, " C"]:
    return torch.rand(len(like), generator=stream, dtype=like.dtype, device=like.device)
