r"""The unknown frames of an autoregression as one block: a Gaussian, given (weights of) the states.

An autoregression scores the window :math:`w_t = (h_t, h_{t-1}, \dots, h_{t-L}, 1)` by a quadratic form, so the
statistics of what is unknown are the products of each window that holds some of it, less those with zeros for what is
unknown. Frames are stacked into superframes of L, which makes an autoregression of any order a block-tridiagonal
Gaussian. Superframes whose entries are all known decouple, so only the others are built: cost and memory grow with what
is missing.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.emissions.quadratic import LOG_2PI, pack_products
from ppgen.families.family import Natural
from ppgen.messages.gaussian.chain import GaussianChain, gaussian_chain

__all__ = ["GapBlock", "Gaps"]


@final
@dataclass(frozen=True)
class Gaps:
    """Where the unknown entries of N sequences of T frames of D dimensions lie, in superframes of ``lags`` frames.

    ``known`` (N, T, D) says which entries are given; frames at or after the end do not exist and count as known.
    """

    lags: int
    frames: int
    known: Bool[Tensor, "N B LD"]
    value: Float[Tensor, "N B LD"]  # zero where unknown
    kept: Int[Tensor, "N M"]  # number of each kept superframe, -1 for padding
    pairs: Int[Tensor, "P 2"]  # (sequence, first superframe) of each pair of neighbours that touches a kept one

    @classmethod
    def build(cls, known: Bool[Tensor, "N T D"], value: Float[Tensor, "N T D"], lags: int) -> "Gaps":
        """Find the superframes that hold something unknown."""
        N, T, D = known.shape
        short = -T % lags
        known = torch.nn.functional.pad(known, (0, 0, 0, short), value=True).reshape(N, -1, lags * D)
        value = torch.nn.functional.pad(value, (0, 0, 0, short)).reshape(N, -1, lags * D)
        value = torch.where(known, value, 0.0)
        unknown = ~known.all(-1)
        most = int(unknown.sum(-1).max()) if N else 0
        order = torch.argsort((~unknown).to(torch.int8), dim=-1, stable=True)[:, :most]
        kept = torch.where(torch.gather(unknown, 1, order), order, -1)
        touched = unknown[:, :-1] | unknown[:, 1:]
        return cls(lags, T, known, value, kept, touched.nonzero())

    def slots(self) -> Int[Tensor, "N B"]:
        """Position of each superframe among the kept ones, or -1."""
        slot = torch.full((len(self.known), self.known.shape[1] + 1), -1)
        rows = torch.arange(len(self.known))[:, None].expand_as(self.kept)
        slot[rows, self.kept] = torch.where(self.kept >= 0, torch.arange(self.kept.shape[1]), -1)
        return slot[:, :-1]

    def windows(self, lengths: Int[Tensor, " N"]) -> list[tuple[Int[Tensor, " r"], Int[Tensor, " r"]]]:
        """Windows that hold something unknown, by the place of their last frame in its superframe.

        Of each the flat frame number, and the pair of superframes that it lies in.
        """
        N, B = self.known.shape[:2]
        unknown = ~self.known.reshape(N, B * self.lags, -1).all(-1)
        shifted = [torch.nn.functional.pad(unknown, (lag, 0))[:, : B * self.lags] for lag in range(self.lags + 1)]
        touched = torch.stack(shifted).any(0) & (torch.arange(B * self.lags) < lengths[:, None])
        number = torch.full((N, B), -1).index_put(tuple(self.pairs.T), torch.arange(len(self.pairs)))
        found = []
        for offset, each in enumerate(touched.reshape(N, B, self.lags)[:, 1:].unbind(-1)):
            n, first = each.nonzero().T
            found.append((n * self.frames + (first + 1) * self.lags + offset, number[n, first]))
        return found


@final
class GapBlock:
    """The unknown entries of N sequences of frames.

    Statistics are ``windows`` (R, F): packed products of each window that holds something unknown, whose flat frame
    numbers are ``rows`` (R,). Rows are thus windows, and `inner` sums over those of a sequence.

    Parameters
    ----------
    gaps : where the unknown entries are.
    lengths : of each sequence.
    precision, information : what is said of the entries of each kept superframe whatever the natural parameters.
    """

    def __init__(
        self,
        gaps: Gaps,
        lengths: Int[Tensor, " N"],
        precision: Float[Tensor, "N M LD LD"],
        information: Float[Tensor, "N M LD"],
    ) -> None:
        self.gaps, (rows, self._pair) = gaps, zip(*gaps.windows(lengths), strict=True)
        self.rows = torch.cat(rows)
        self._sequence = self.rows // gaps.frames
        self._width = gaps.known.shape[-1] // gaps.lags
        n, b = gaps.pairs.T
        self._free = (~torch.cat([gaps.known[n, b], gaps.known[n, b + 1]], -1)).to(precision)
        self._value = torch.cat([gaps.value[n, b], gaps.value[n, b + 1]], -1)
        slot = gaps.slots()
        self._slot = slot[n, b], slot[n, b + 1]
        self._fix(precision, information)

    def start(self, rows: int) -> Natural:
        """Independent standard normals, but for what is said whatever the natural parameters."""
        i, j = torch.triu_indices(*2 * [self._window + 1])
        own = torch.where((i == j) & (i < self._width), -0.5, 0.0).to(self._value)
        return {"windows": own.expand(len(self.rows), -1).clone()}

    def solved(self, eta: Natural) -> tuple[Natural, Float[Tensor, " N"]]:
        """Expected statistics, and the log of the integral over the unknown entries, without a gradient."""
        with torch.no_grad():
            chain = self.chain(eta)
            second = self._moments(chain)
            columns = self._window + 1
            i, j = torch.triu_indices(columns, columns)
            flat, Z = second.flatten(1), second.shape[-1]
            found = [flat[p[:, None], at[i] * Z + at[j]] for p, at in self._places()]
            return {"windows": torch.cat(found)}, chain.log_normalizer - self._pins

    def statistic(self, value: Float[Tensor, "N T D"]) -> Natural:
        """Statistics of given frames."""
        known = self._frames(self.gaps.value)
        return {"windows": pack_products(self._windows(value)) - pack_products(self._windows(known))}

    def sample(self, eta: Natural) -> Float[Tensor, "N T D"]:
        """One draw of every frame; known entries as given."""
        return self._filled(self.chain(eta).sample(1)[0])

    def mean(self, eta: Natural) -> Float[Tensor, "N T D"]:
        """Posterior mean of every frame; known entries as given."""
        return self._filled(self.chain(eta).mean)

    def inner(self, a: Natural, b: Natural) -> Float[Tensor, " N"]:
        """Inner product over the windows of each sequence."""
        each = (a["windows"] * b["windows"]).sum(-1)
        return each.new_zeros(len(self.gaps.known)).index_add(0, self._sequence, each)

    def chain(self, eta: Natural) -> GaussianChain:
        """The kept superframes, with zeros pinned where an entry is known; NaN where it is indefinite."""
        pair, info = self._pairs(eta["windows"])
        info = (info - (pair @ self._value[..., None])[..., 0]) * self._free
        pair.mul_(self._free[:, :, None]).mul_(self._free[:, None, :])
        n, (first, second) = self.gaps.pairs[:, 0], self._slot
        size = self.gaps.known.shape[-1]
        J, h = self._precision, self._information
        J_cross = pair.new_zeros(*self.gaps.kept.shape, size, size)
        for side, where in ((slice(0, size), first), (slice(size, None), second)):
            keep = _rows(where >= 0)
            place = (n[keep], where[keep])
            J = torch.index_put(J, place, pair[keep, side, side], accumulate=True)
            h = torch.index_put(h, place, info[keep, side], accumulate=True)
        both = _rows((first >= 0) & (second >= 0))
        J_cross = torch.index_put(J_cross, (n[both], first[both]), pair[both, :size, size:])
        return gaussian_chain(J, J_cross[:, :-1], h, strict=False)

    def _pairs(self, windows: Float[Tensor, "R F"]) -> tuple[Tensor, Tensor]:
        """Precision and information of each pair of superframes, for natural parameters of the windows."""
        W, size = self._window, 2 * self.gaps.known.shape[-1]
        i, j = torch.triu_indices(W + 1, W + 1)
        number = torch.zeros(W + 1, W + 1, dtype=torch.long).index_put((i, j), torch.arange(len(i)))
        number = torch.maximum(number, number.mT)
        time = self._newest_first  # its own inverse: from the order of windows to that of time
        twice = (1 + torch.eye(W)).flatten().to(windows)
        matrix = windows[:, number[time][:, time].flatten()].mul_(-twice)
        vector = windows[:, number[time, -1]]
        pair, info = windows.new_zeros(len(self._value), size, size), windows.new_zeros(len(self._value), size)
        counts = [len(p) for p in self._pair]
        parts = zip(self._pair, matrix.unflatten(1, (W, W)).split(counts), vector.split(counts), strict=True)
        for offset, (p, precision, information) in enumerate(parts):
            span = slice(offset * self._width, offset * self._width + W)
            pair[p, span, span] = pair[p, span, span] + precision
            info[p, span] = info[p, span] + information
        return pair, info

    def _moments(self, chain: GaussianChain) -> Float[Tensor, "P Z Z"]:
        """Expected products of each pair of superframes and 1, less those with zeros for what is unknown."""
        n, (first, second) = self.gaps.pairs[:, 0], self._slot
        mean, covariance, cross = chain.mean, chain.covariance, chain.cross_covariance
        P, size = len(n), mean.shape[-1]
        out, moved = mean.new_zeros(P, 2 * size + 1, 2 * size + 1), mean.new_zeros(P, 2 * size)
        for side, where in ((slice(0, size), first), (slice(size, 2 * size), second)):
            keep = _rows(where >= 0)
            free = self._free[keep, side]
            out[keep, side, side] = covariance[n[keep], where[keep]] * free[:, :, None] * free[:, None, :]
            moved[keep, side] = mean[n[keep], where[keep]]
        both = _rows((first >= 0) & (second >= 0))
        free = self._free[both]
        between = cross[n[both], first[both]] * free[:, :size, None] * free[:, None, size:]
        out[both, :size, size : 2 * size] = between
        out[both, size : 2 * size, :size] = between.mT
        known = torch.nn.functional.pad(self._value, (0, 1), value=1.0)
        moved = torch.nn.functional.pad(moved, (0, 1))
        out += (known + moved)[:, :, None] * moved[:, None, :]
        out += moved[:, :, None] * known[:, None, :]
        return out

    def _fix(self, precision: Tensor, information: Tensor) -> None:
        """Keep what is said of single superframes, with known entries pinned to a precision of one."""
        gaps, padding = self.gaps, (self.gaps.kept < 0)[..., None]
        rows = torch.arange(len(gaps.known))[:, None]
        free = ~(gaps.known[rows, gaps.kept] | padding)
        values = gaps.value[rows, gaps.kept].masked_fill(padding, 0.0)
        moved = information - torch.einsum("nmij,nmj->nmi", precision, values)
        self._information = torch.where(free, moved, 0.0)
        pins = torch.diag_embed((~free).to(precision))
        self._precision = precision * free[..., :, None] * free[..., None, :] + pins
        self._pins = (~free).sum((-1, -2)).to(precision) * (LOG_2PI / 2)

    @property
    def _window(self) -> int:
        return (self.gaps.lags + 1) * self._width

    @property
    def _newest_first(self) -> Int[Tensor, " W"]:
        return torch.arange(self._window).reshape(-1, self._width).flip(0).reshape(-1)

    def _places(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs of the windows that end at each place, and where those pairs hold the entries of a window and 1."""
        last = torch.tensor([2 * self.gaps.known.shape[-1]])
        places = (torch.cat([self._newest_first + o * self._width, last]) for o in range(self.gaps.lags))
        return list(zip(self._pair, places, strict=True))

    def _windows(self, value: Float[Tensor, "N T D"]) -> Float[Tensor, "R W"]:
        t = self.rows % self.gaps.frames
        found = value[self._sequence[:, None], t[:, None] - torch.arange(self.gaps.lags + 1)]
        return torch.nn.functional.pad(found.flatten(1), (0, 1), value=1.0)

    def _filled(self, moved: Float[Tensor, "N M LD"]) -> Float[Tensor, "N T D"]:
        """Every frame, from the unknown entries of the kept superframes."""
        gaps = self.gaps
        row, slot = (gaps.kept >= 0).nonzero().T
        full = torch.index_put(gaps.value, (row, gaps.kept[row, slot]), moved[row, slot])
        return self._frames(torch.where(gaps.known, gaps.value, full))

    def _frames(self, superframes: Float[Tensor, "N B LD"]) -> Float[Tensor, "N T D"]:
        return superframes.reshape(len(superframes), -1, self._width)[:, : self.gaps.frames]


def _rows(chosen: Bool[Tensor, " P"]) -> Int[Tensor, " m"]:
    """Where it is true; indices, unlike masks, have one shape while a program is traced."""
    return chosen.nonzero()[:, 0]
