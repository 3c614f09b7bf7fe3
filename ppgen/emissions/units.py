"""Data whose units do not suit the prior of an emission: refused in words, as a fit would be wrong and sure."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.data.arrays import exists
from ppgen.data.parts import Inputs
from ppgen.emissions.emission import Emission
from ppgen.errors import DataError

__all__ = ["check_units", "input_cautions"]

SMALL = 0.1  # standard deviations of the data in those of the prior
SMALLISH, WIDER = 0.3, 0.05  # the log warns of small data to whose variance the prior adds more than such a share
FAR_FROM_ZERO = 10.0  # distance of the data's centre from zero, in their standard deviations
REACH, WIDE = 0.3, 10.0  # of an input: the least largest distance from its mean, and the most standard deviation

log = logging.getLogger(__name__)


def check_units(who: str, emission: Emission, batches: Sequence[Tensor], states: int) -> None:
    """Refuse data that the prior of the emission of ``who`` outweighs because of their units.

    A feature is out of scale where it is small beside the prior's guess of its spread, or far from zero beside its own,
    and the prior's sum of squares then exceeds that of all frames of a state. Constant features tell states nothing.

    Raises
    ------
    DataError : no feature that varies is in scale. Where only some are not, the log names them.
    """
    units = emission.prior_units
    if units is None or batches[0].shape[-1] != emission.features:
        return
    scale, strength = units
    parts = [x.reshape(-1, x.shape[-1]) for x in batches]  # one at a time: all together may fill the memory
    count = torch.stack([(~rows.isnan()).sum(0) for rows in parts]).sum(0)
    mean = torch.stack([rows.nansum(0) for rows in parts]).sum(0) / count
    variance = torch.stack([(rows - mean).square().nansum(0) for rows in parts]).sum(0) / count
    varies = variance.sqrt() > 1e-12 * mean.abs()
    offset = strength * mean.square()
    outweighed = scale + offset > count / states * variance
    odd = (variance < SMALL**2 * scale) | ((offset > 0) & (mean.abs() > FAR_FROM_ZERO * variance.sqrt()))
    odd &= outweighed & varies
    if not odd.any():
        _say_smallish(emission, varies & (scale > WIDER * count / states * variance), variance, scale)
        return
    d, axes = int(odd.nonzero()[0, 0]), tuple(range(batches[0].ndim - 1)) if batches[0].ndim > 2 else 0
    words = (
        f"{who}, {type(emission).__name__}: x must be in units of about the prior's, zero mean and standard deviation "
        f"{scale**0.5:.3g}, got feature {d} with mean {float(mean[d]):.3g} and standard deviation "
        f"{float(variance[d]) ** 0.5:.3g}; standardise, `x = (x - np.nanmean(x, {axes})) / np.nanstd(x, {axes})`, "
        "and multiply answers back"
    )
    if bool((odd == varies).all()):
        raise DataError(words)
    log.warning("%s; %d of %d features that vary are so, and tell states hardly apart", words, odd.sum(), varies.sum())


def input_cautions(who: str, x: Tensor, u: Inputs) -> list[str]:
    """Say which inputs do not suit weights with a prior of about one, and which are the same everywhere.

    A rare event, an input that is zero but in a few rows, is in scale: it is judged by how far it reaches.
    """
    if not isinstance(u, Tensor) or u.ndim < 2 or not u.numel():
        return []
    rows = (u[exists(x)] if u.ndim == 3 and u.shape[:2] == x.shape[:2] else u.reshape(-1, u.shape[-1])).double()
    if len(rows) < 2:
        return []
    mean, spread, reach = rows.mean(0), rows.std(0, correction=0), (rows - rows.mean(0)).abs().amax(0)
    varies = spread > 1e-12 * mean.abs()
    odd = varies & ((reach < REACH) | (spread > WIDE) | (mean.abs() > FAR_FROM_ZERO * spread) & (mean.abs() > 1))
    found = [
        f"{who}: u must be in units of about one around zero, got input {i} with mean {float(mean[i]):.3g} and "
        f"standard deviation {float(spread[i]):.3g}, whose weights the prior does not suit; standardise, "
        "`u = (u - u.mean()) / u.std()`, with the same numbers for other data"
        for i in odd.nonzero()[:, 0].tolist()[:1]
    ]
    return found + [
        f"{who}: input {i} is {float(mean[i]):.3g} everywhere, beside the one that the model adds itself; leave it out"
        for i in (~varies & (mean != 0)).nonzero()[:, 0].tolist()[:1]
    ]


def _say_smallish(emission: Emission, widened: Tensor, variance: Tensor, scale: float) -> None:
    """Warn of features that are not so small as to be refused, but whose states the prior will widen."""
    small = widened & (variance < SMALLISH**2 * scale)
    if small.any():
        d = int(small.nonzero()[0, 0])
        log.warning(
            "%s: x must be in units of about the prior's, standard deviation %.3g, got feature %d with %.3g, whose "
            "states the prior will make wider than they are; standardise", type(emission).__name__, scale**0.5, d,
            float(variance[d]) ** 0.5,
        )  # fmt: skip
