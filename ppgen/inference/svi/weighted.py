r"""The importance-weighted bound: of each row, the logarithm of a mean of weights instead of a mean of logarithms.

.. math::
    \mathcal L_K = \mathrm E_{q(\theta)} \left[ \log \frac{p(\theta)}{q(\theta)}
        + \sum_n \mathrm E_{h_{n1}, \dots, h_{nK} \sim q(h_n \mid x_n, \theta)}
          \log \frac 1K \sum_k \frac{p(x_n, h_{nk} \mid \theta)}{q(h_{nk} \mid x_n, \theta)} \right]

A row's own latents h are averaged inside the logarithm; what rows share, :math:`\theta`, is drawn once and stays
outside. The bound is the ELBO for K = 1, never falls as K grows, and tends to the one with :math:`\log p(x_n \mid
\theta)` in place of the last term. Where rows own nothing, whole draws are weighed: that bound is one of all rows
together, and no minibatch estimates it without bias. The gradient is that of the bound, by reparameterised draws.

References: Burda, Grosse & Salakhutdinov (2016); Mattei & Frellsen (2019) for entries that are missing, whose factor is
one.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import vmap

from ppgen.errors import FitError
from ppgen.predictions.discrete_sites import sum_rows
from ppgen.programs.enumeration import enumerated_log_prob, enumerating, unscaled
from ppgen.programs.mapped import mapped

__all__ = ["Pair", "Weighted", "check_weighted", "weighted_bound"]

Program = Callable[..., Any]
SAME = 1e-9  # relative difference of two sums that is rounding


@final
@dataclass(frozen=True)
class Weighted:
    """The number of draws that are weighed for each row of the ``plates``; without plates, whole draws are weighed."""

    draws: int
    plates: frozenset[str]


class Pair(NamedTuple):
    """A model and a guide, what both are called with, and how deep plates nest where the model has sites to sum out."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    depth: int | None

    def run(self, shared: poutine.Trace | None = None) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces of model and guide at one draw, the values in ``shared`` given."""
        guide = self.guide if shared is None else poutine.replay(self.guide, trace=shared)
        model = self.model if self.depth is None else enumerating(self.model, self.depth)
        q = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        return poutine.trace(poutine.replay(model, trace=q)).get_trace(*self.args, **self.kwargs), q


def weighted_bound(pair: Pair, kind: Weighted, markers: Float[Tensor, " K"] | None) -> Float[Tensor, ""]:
    """The bound at one draw of what rows share, and K of what they own: mapped over ``markers``, or without in turn."""
    shared = _shared(pair, kind.plates)
    scale: float | Tensor = 1.0

    def weights() -> tuple[Tensor, Tensor]:
        nonlocal scale
        own, outside, scale = _log_weights(pair, kind, shared)
        return own, outside

    def mapped_weights(marker: Tensor) -> tuple[Tensor, Tensor]:
        with mapped(marker):
            return weights()

    if markers is None:
        found = zip(*(weights() for _ in range(kind.draws)), strict=True)
        own, outside = (torch.stack(parts) for parts in found)
    else:
        own, outside = vmap(mapped_weights, randomness="different")(markers)
    return outside.mean() + scale * (own.logsumexp(0) - math.log(kind.draws)).sum()


def check_weighted(pair: Pair, kind: Weighted, scored: Collection[str], summed: Collection[str]) -> None:
    """Refuse a pair of programs whose bound would not be the one that is meant.

    Raises
    ------
    FitError : names the site at fault, and what to do.
    """
    if scored:
        raise FitError(
            f'svi: bound="iwae" needs draws with a derivative, but site {sorted(scored)[0]!r} of the guide has none; '
            'leave it out of the guide where it is small and discrete, which sums it out, or use bound="elbo"'
        )
    if not kind.plates:
        return
    with torch.no_grad():
        shared = _shared(pair, kind.plates)
        first, second = (_log_weights(pair, kind, shared) for _ in range(2))
        p, q = pair.run(shared)
        p.compute_log_prob()
        p.pack_tensors()
    for name in summed:
        if not _is_own(p.nodes[name], kind.plates):
            raise FitError(
                f'svi: bound="iwae" needs every discrete site in the plate over rows, {name!r} is shared by rows; make '
                'it continuous, or use bound="elbo"'
            )
    own = {site["name"] for site in _own_sites(p, kind.plates)} & set(q.nodes)
    if away := sorted(name for name in own if not _is_own(q.nodes[name], kind.plates)):
        raise FitError(
            f'svi: bound="iwae" weighs each row, so the guide must draw site {away[0]!r} in the plate over rows, as '
            f"the model does; write `with pyro.plate({sorted(kind.plates)[0]!r}, total or len(x), "
            "subsample_size=len(x)):` around it"
        )
    scales = {float(site["scale"]) for trace in (p, q) for site in _own_sites(trace, kind.plates)}
    if len(scales) > 1:
        raise FitError(
            f'svi: bound="iwae" needs all sites of a row scaled alike, got {sorted(scales)}; leave poutine.scale out'
        )
    rest = [site for site in _sites(p) if not _is_own(site, kind.plates)]
    values = set(p.symbol_to_dim) - set(p.plate_to_symbol.values())
    if abs(first.outside - second.outside) > SAME * (1 + abs(first.outside)) or any(
        values & set(site["packed"]["log_prob"]._pyro_dims) for site in rest
    ):
        raise FitError(
            'svi: bound="iwae" needs every site that depends on what a row owns in the plate over rows, one outside '
            'does too (a factor?); move it there, or use bound="elbo"'
        )


class _LogWeights(NamedTuple):
    """Log weights of one draw: of each row, of all else, and by what those of the rows are scaled."""

    own: Tensor
    outside: Tensor
    scale: float | Tensor


def _log_weights(pair: Pair, kind: Weighted, shared: poutine.Trace | None) -> _LogWeights:
    """Log weights p / q of one draw: of each row's own values and of all else; without plates one for whole draws."""
    p, q = pair.run(shared)
    for trace in (p, q):
        trace.compute_log_prob()
    if not kind.plates:
        joint = p.log_prob_sum() if pair.depth is None else enumerated_log_prob(p)
        whole = torch.as_tensor(joint - q.log_prob_sum())
        return _LogWeights(whole[None], torch.zeros_like(whole), 1.0)

    def elsewhere(_: str, site: Any) -> bool:  # noqa: ANN401 (a node of a trace)
        return not _is_own(site, kind.plates)

    outside = torch.as_tensor(p.log_prob_sum(elsewhere) - q.log_prob_sum(elsewhere))
    own = _by_row(p, kind.plates, pair.args) - _by_row(q, kind.plates, pair.args)
    return _LogWeights(own, outside.to(own), next(_own_sites(p, kind.plates))["scale"])


def _by_row(trace: poutine.Trace, plates: Collection[str], args: tuple[Any, ...]) -> Float[Tensor, " N"]:
    """Log density of what each row owns, before it is scaled; discrete sites are summed out."""
    trace.pack_tensors()
    for site in _own_sites(trace, plates):
        site["packed"]["log_prob"] = unscaled(site)
    symbols = {trace.plate_to_symbol[name] for name in plates if name in trace.plate_to_symbol}
    return sum_rows(trace, len(args[0]), symbols)


def _shared(pair: Pair, plates: Collection[str]) -> poutine.Trace | None:
    """One draw of what the guide draws outside of the plates over rows; None where it draws whole ones."""
    if not plates:
        return None
    trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
    for site in list(_own_sites(trace, plates)):
        trace.remove_node(site["name"])
    return trace


def _sites(trace: poutine.Trace) -> Iterator[Any]:
    sites: dict[str, Any] = dict(trace.nodes)
    return (site for site in sites.values() if site["type"] == "sample" and not site_is_subsample(site))


def _own_sites(trace: poutine.Trace, plates: Collection[str]) -> Iterator[Any]:
    return (site for site in _sites(trace) if _is_own(site, plates))


def _is_own(site: Any, plates: Collection[str]) -> bool:  # noqa: ANN401 (a node of a trace)
    return any(frame.name in plates for frame in site["cond_indep_stack"])
