r"""The Gaussian chain of latent frames of an autoregression, given (weights of) its states.

Frames are stacked into blocks of ``lags``, which makes an autoregression of any order a block-tridiagonal Gaussian.
Blocks whose frames are all known decouple, so only the others are built: cost and memory grow with what is missing.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.messages import gaussian_chain

__all__ = ["GapChain"]


@final
@dataclass(frozen=True)
class GapChain:
    """Where the unknown frames of N sequences of T frames of D dimensions lie, in blocks of ``lags`` frames.

    ``known`` (N, T, D) says which entries are given; frames at or after ``lengths`` do not exist and count as known.
    """

    lags: int
    known: Bool[Tensor, "N B LD"]
    value: Float[Tensor, "N B LD"]
    kept: Int[Tensor, "N M"]  # block number of each kept block, -1 for padding
    pairs: Int[Tensor, "P 2"]  # (sequence, first block) of each pair of neighbours that touches a kept block

    @classmethod
    def build(cls, known: Bool[Tensor, "N T D"], value: Float[Tensor, "N T D"], lags: int) -> "GapChain":
        """Find the blocks that hold something unknown."""
        N, T, D = known.shape
        short = -T % lags
        known = torch.nn.functional.pad(known, (0, 0, 0, short), value=True).reshape(N, -1, lags * D)
        value = torch.nn.functional.pad(value, (0, 0, 0, short)).reshape(N, -1, lags * D)
        value = torch.where(known, value, 0.0)
        open_block = ~known.all(-1)
        most = int(open_block.sum(-1).max()) if N else 0
        order = torch.argsort((~open_block).to(torch.int8), dim=-1, stable=True)[:, :most]
        kept = torch.where(torch.gather(open_block, 1, order), order, -1)
        touched = open_block[:, :-1] | open_block[:, 1:]
        return cls(lags, known, value, kept, touched.nonzero())

    @property
    def frames(self) -> Int[Tensor, "P L"]:
        """Frame numbers (in their sequence) whose windows the pairs hold: those of the second block of each pair."""
        return (self.pairs[:, 1:] + 1) * self.lags + torch.arange(self.lags)

    def posterior(
        self,
        windows: Float[Tensor, "P L W W"],
        linear: Float[Tensor, "P L W"],
        unary: Float[Tensor, "N M LD LD"],
        unary_linear: Float[Tensor, "N M LD"],
    ) -> "GapPosterior":
        """Assemble and solve the chain.

        ``windows`` and ``linear`` are precision and information of each frame's window in time order
        (``W = (lags + 1) D``: the frame's lags, oldest first, then the frame); ``unary`` those on single blocks.
        """
        size = self.known.shape[-1]
        D = size // self.lags
        pair = windows.new_zeros(len(self.pairs), 2 * size, 2 * size)
        info = windows.new_zeros(len(self.pairs), 2 * size)
        for o in range(self.lags):
            span = slice(o * D, o * D + windows.shape[-1])
            pair[:, span, span] += windows[:, o]
            info[:, span] += linear[:, o]
        n, b = self.pairs.T
        given = torch.cat([self.known[n, b], self.known[n, b + 1]], -1)
        values = torch.cat([self.value[n, b], self.value[n, b + 1]], -1)
        info = torch.where(given, 0.0, info - torch.einsum("pij,pj->pi", pair, values))
        pair = pair * (~given)[:, :, None] * (~given)[:, None, :]
        slot = self.slots()
        J, h = self._unary(unary, unary_linear)
        J_cross = windows.new_zeros(*self.kept.shape, size, size)
        first, second = slot[n, b], slot[n, b + 1]
        for side, where in ((slice(0, size), first), (slice(size, None), second)):
            keep = _rows(where >= 0)
            place = (n[keep], where[keep])
            J = torch.index_put(J, place, pair[keep][:, side, side], accumulate=True)
            h = torch.index_put(h, place, info[keep][:, side], accumulate=True)
        both = _rows((first >= 0) & (second >= 0))
        J_cross = torch.index_put(J_cross, (n[both], first[both]), pair[both][:, :size, size:])
        return GapPosterior(self, J, J_cross[:, :-1], h, first, second)

    def slots(self) -> Tensor:
        """(N, B): position of each block among the kept ones, or -1."""
        slot = torch.full((len(self.known), self.known.shape[1] + 1), -1)
        rows = torch.arange(len(self.known))[:, None].expand_as(self.kept)
        slot[rows, self.kept] = torch.where(self.kept >= 0, torch.arange(self.kept.shape[1]), -1)
        return slot[:, :-1]

    def _unary(self, unary: Tensor, unary_linear: Tensor) -> tuple[Tensor, Tensor]:
        """Single-block terms with the known entries pinned: identity precision, their value as information."""
        given, values = self.block_state()
        free = ~given
        info = torch.where(given, values, unary_linear - torch.einsum("nmij,nmj->nmi", unary, values))
        return unary * free[..., :, None] * free[..., None, :] + torch.diag_embed(given.to(unary)), info

    def block_state(self) -> tuple[Tensor, Tensor]:
        """Known mask and values of the kept blocks (N, M, LD); padding counts as known zeros."""
        rows = torch.arange(len(self.known))[:, None]
        padding = (self.kept < 0)[..., None]
        return self.known[rows, self.kept] | padding, self.value[rows, self.kept].masked_fill(padding, 0.0)


@final
class GapPosterior:
    """Posterior of the unknown frames: a Gaussian chain over the kept blocks."""

    def __init__(self, gap: GapChain, J: Tensor, J_cross: Tensor, h: Tensor, first: Tensor, second: Tensor) -> None:
        self.gap, self.first, self.second, self.h = gap, first, second, h
        self.chain = gaussian_chain(J, J_cross, h, strict=False)

    @property
    def entropy(self) -> Float[Tensor, " N"]:
        """Entropy of the unknown entries of each sequence, in nats."""
        log_2pi = torch.log(torch.tensor(2 * torch.pi, dtype=self.h.dtype))
        entries = self.h.shape[1] * self.h.shape[2]
        log_det = (self.h * self.chain.mean).sum((-1, -2)) + entries * log_2pi - 2 * self.chain.log_normalizer
        unknown = (~self.gap.known).sum((-1, -2)).to(self.h)
        return (unknown * (1 + log_2pi) - log_det) / 2

    def frames_of(self, blocks: Float[Tensor, "N M LD"]) -> Float[Tensor, "N T D"]:
        """Scatter values of the kept blocks back onto the frames (T rounded up to whole blocks)."""
        row, slot = (self.gap.kept >= 0).nonzero().T
        full = torch.index_put(self.gap.value, (row, self.gap.kept[row, slot]), blocks[row, slot])
        full = torch.where(self.gap.known, self.gap.value, full)
        return full.reshape(len(full), full.shape[1] * self.gap.lags, -1)

    def sample(self) -> Float[Tensor, "N T D"]:
        """One draw of every frame; known entries as given."""
        return self.frames_of(self.chain.sample(1)[0])

    def pair_covariance(self) -> Float[Tensor, "P W W"]:
        """Covariance of the frames of each pair of neighbouring blocks; zero for known entries."""
        gap, n = self.gap, self.gap.pairs[:, 0]
        free = ~gap.block_state()[0]
        blocks = self.chain.covariance * free[..., :, None] * free[..., None, :]
        size = blocks.shape[-1]
        out = blocks.new_zeros(len(n), 2 * size, 2 * size)
        for side, where in ((slice(0, size), self.first), (slice(size, None), self.second)):
            keep = _rows(where >= 0)
            out[keep, side, side] = blocks[n[keep], where[keep]]
        both = _rows((self.first >= 0) & (self.second >= 0))
        cross = self.chain.cross_covariance[n[both], self.first[both]]
        cross = cross * free[n[both], self.first[both]][:, :, None] * free[n[both], self.second[both]][:, None, :]
        out[both, :size, size:] = cross
        out[both, size:, :size] = cross.mT
        return out


def _rows(chosen: Bool[Tensor, " P"]) -> Int[Tensor, " m"]:
    """Where it is true; indices, unlike masks, have one shape while a program is traced."""
    return chosen.nonzero()[:, 0]
