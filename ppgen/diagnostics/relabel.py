r"""Labels that carry no meaning of their own, put in one order: of the states of a chain, the components of a mixture.

A posterior that is symmetric in its labels says the same under every numbering, and chains (or draws) that number
differently disagree in nothing but names. Each draw is renumbered so that the sum over labels of

.. math:: \sum_f \log v_{kf} + \tfrac52 \log\bigl(1 + \tfrac14 ((\theta_{kf} - m_{kf}) / v_{kf})^2\bigr)

is least: the Student-t (4 degrees of freedom) score of the label's own numbers :math:`\theta_{kf}` under the centres
:math:`m` and scales :math:`v` of the labels, which are the medians and MADs of the draws so numbered. Both are found in
turn from a pivot, several of which are tried. A site with two axes of the same labels (a transition matrix) is permuted
along both and enters with its diagonal.

References: Stephens (2000), algorithm of sec. 4 with the loss of his thesis for parameters; Marin, Mengersen & Robert
(2005) for the pivot; Kuhn (1955) for the assignment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from ppgen.diagnostics.convergence import NUMBERS_AT_ONCE
from ppgen.errors import DataError

__all__ = ["Alignment", "align", "label_axes", "permuted"]

Array = np.ndarray
Axes = Mapping[str, tuple[int, ...]]

LEARNT, PIVOTS, TURNS = 1000, 4, 20  # draws that centres are learnt from; starts; turns of each
FLOOR = 1e-3  # smallest scale, of the spread of a number over all draws and labels
SURE = float(np.log(9))  # nats by which the best numbering must beat an exchange of two labels


@final
@dataclass(frozen=True, eq=False)
class Alignment:
    """Renumbering of draws: label ``k`` is the draw's own ``permutation[..., k]``; the identity is commonest."""

    permutation: Int[Array, "C S K"]
    unclear: float
    """Share of draws in which two labels could as well be exchanged (odds under 9 : 1)."""

    @property
    def moved(self) -> float:
        """Share of draws that are numbered otherwise than most."""
        return float((self.permutation != np.arange(self.permutation.shape[-1])).any(-1).mean())

    @property
    def within(self) -> float:
        """Share of steps from one draw of a chain to the next at which the numbering changes."""
        if self.permutation.shape[1] < 2:
            return 0.0
        return float((np.diff(self.permutation, axis=1) != 0).any(-1).mean())

    @property
    def numberings(self) -> int:
        """Count the different numberings, taking the commonest of each chain."""
        return len({tuple(_commonest(chain).tolist()) for chain in self.permutation})

    def words(self, name: str) -> str:
        """Say what happened to the labels called ``name``."""
        if self.moved == 0:
            return f"Labels of {name} never switched."
        return (
            f"Labels of {name} switched ({self.numberings} numberings among the chains, changes at {self.within:.1%} "
            "of steps within them), which is no fault of the chains; they were compared after alignment."
        )


def label_axes(dims: Mapping[str, Sequence[str]], name: str) -> dict[str, tuple[int, ...]]:
    """Site -> its event axes called ``name`` or ``next_<name>``, of the sites that have one."""
    found = {
        site: tuple(i for i, dim in enumerate(names) if dim in (name, f"next_{name}")) for site, names in dims.items()
    }
    return {site: axes for site, axes in found.items() if axes}


def align(
    draws: Mapping[str, Float[Array, "C S *event"]], axes: Axes, lp: Float[Array, "C S"] | None = None
) -> Alignment:
    """Number the labels of every draw alike.

    Parameters
    ----------
    draws : draws of every site that has the labels; others are not looked at.
    axes : site -> the event axes that hold the labels, 0 the first behind chain and draw.
    lp : log density; its largest is the first pivot.

    Raises
    ------
    DataError : sites that are not there, or that differ in how many labels they have.
    """
    features = _features(draws, axes)
    C, S, K, F = features.shape
    flat = features.reshape(C * S, K, F)
    learnt = flat[np.linspace(0, len(flat) - 1, min(LEARNT, len(flat))).astype(int)]
    floor = FLOOR * _spread(learnt.reshape(-1, F)) + np.finfo(float).tiny
    scale = np.maximum(np.median(_spread(features[:, :LEARNT].swapaxes(0, 1)), (0, 1)), floor)
    first = [] if lp is None else [flat[int(np.argmax(np.nan_to_num(lp, nan=-np.inf)))]]
    pivots = [*first, *learnt[:: max(1, len(learnt) // PIVOTS)]][:PIVOTS]
    found = [_centres(learnt, pivot, scale, floor) for pivot in pivots]
    centres, scales, _ = min(found, key=lambda candidate: candidate[2])
    rows = max(1, NUMBERS_AT_ONCE // (K * K * F))
    parts = [_assigned(flat[i : i + rows], centres, scales) for i in range(0, len(flat), rows)]
    permutation = np.concatenate([part[0] for part in parts])
    margin = np.concatenate([part[1] for part in parts])
    return Alignment(_from_commonest(permutation).reshape(C, S, K), float((margin < SURE).mean()))


def permuted(value: Float[Array, "C S *event"], permutation: Int[Array, "C S K"], axes: tuple[int, ...]) -> Array:
    """One site, its labels along ``axes`` in the order of ``permutation``."""
    for axis in axes:
        shape = [1] * value.ndim
        shape[:2], shape[2 + axis] = permutation.shape[:2], permutation.shape[2]
        value = np.take_along_axis(value, permutation.reshape(shape), 2 + axis)
    return value


def _features(draws: Mapping[str, Array], axes: Axes) -> Float[Array, "C S K F"]:
    """Features that labels are matched by: a label's entries of every site, diagonal ones where two axes are labels."""
    missing = sorted(set(axes) - set(draws))
    if missing or not axes:
        raise DataError(f"relabel: axes must name sites of the fit, {sorted(draws)}, got {missing or 'none'}")
    parts = []
    for site, places in axes.items():
        value = np.asarray(draws[site], dtype=float)
        if not places or min(places) < 0 or max(places) > value.ndim - 3:
            raise DataError(f"relabel: {site} must have the axes of its labels, {places}, got shape {value.shape[2:]}")
        if not np.isfinite(value).all():
            raise DataError(f"relabel: draws of {site} must be finite, some are not; see what diagnose says of them")
        moved = np.moveaxis(value, [2 + axis for axis in places], range(-len(places), 0))
        for _ in places[1:]:
            moved = np.diagonal(moved, axis1=-2, axis2=-1)
        parts.append(np.moveaxis(moved, -1, 2).reshape(*value.shape[:2], moved.shape[-1], -1))
    labels = {site: part.shape[2] for site, part in zip(axes, parts, strict=True)}
    if len(set(labels.values())) > 1:
        raise DataError(f"relabel: every site must have as many labels, got {labels}; give their axes")
    return np.concatenate(parts, -1)


def _centres(
    flat: Float[Array, "S K F"], pivot: Float[Array, "K F"], scale: Float[Array, " F"], floor: Float[Array, " F"]
) -> tuple[Float[Array, "K F"], Float[Array, "K F"], float]:
    """Centres and spreads of the labels, learnt in turn with the numbering; and the score of both."""
    centres, scales = pivot, np.broadcast_to(scale, pivot.shape)
    before: Array | None = None
    for _ in range(TURNS):
        permutation, _ = _assigned(flat, centres, scales)
        if before is not None and (permutation == before).all():
            break
        before = permutation
        numbered = np.take_along_axis(flat, permutation[..., None], 1)
        centres, scales = np.median(numbered, 0), np.maximum(_spread(numbered), floor)
    cost = _cost(flat, centres, scales)
    return centres, scales, float(np.take_along_axis(cost, permutation[:, None], 1).sum())


def _assigned(
    flat: Float[Array, "S K F"], centre: Float[Array, "K F"], scale: Float[Array, "K F"]
) -> tuple[Int[Array, "S K"], Float[Array, " S"]]:
    """The best numbering of each draw, and the nats by which it beats the best exchange of two labels.

    With c[k, j] the cost of the label of centre k in centre j, an exchange costs c[k, j] + c[j, k] - c[k, k] - c[j, j].
    """
    cost = _cost(flat, centre, scale)
    best = cost.argmin(1)  # the draw's label that suits each centre best
    conflict = (np.sort(best, -1) != _labels(centre)).any(-1)
    for row in np.flatnonzero(conflict):  # few: elsewhere every label has a favourite of its own
        best[row] = linear_sum_assignment(cost[row].T)[1]
    chosen = np.take_along_axis(cost, best[:, :, None], 1)  # [s, k, j]: centre j, with the label that centre k got
    own = np.diagonal(chosen, axis1=1, axis2=2)
    swap = chosen + chosen.swapaxes(1, 2) - own[:, :, None] - own[:, None, :]
    swap[:, _labels(centre), _labels(centre)] = np.inf
    return best, swap.min((1, 2))


def _cost(flat: Array, centre: Array, scale: Array) -> Float[Array, "S K K"]:
    """Minus the log score of the draw's label i in centre j."""
    deviation = (flat[:, :, None, :] - centre) / scale
    return (2.5 * np.log1p(deviation**2 / 4)).sum(-1) + np.log(scale).sum(-1)


def _spread(values: Array) -> Array:
    """Robust standard deviation along the first axis."""
    return 1.4826 * np.median(np.abs(values - np.median(values, 0)), 0)


def _labels(centre: Float[Array, "K F"]) -> Int[Array, " K"]:
    return np.arange(len(centre))


def _commonest(permutation: Int[Array, "S K"]) -> Int[Array, " K"]:
    rows, counts = np.unique(permutation, axis=0, return_counts=True)
    return rows[counts.argmax()]


def _from_commonest(permutation: Int[Array, "S K"]) -> Int[Array, "S K"]:
    """The same alignment, numbered as most draws already are."""
    answer = np.empty_like(permutation)
    answer[:, _commonest(permutation)] = permutation
    return answer
