"""Small discrete latent sites of a Pyro program, summed out under ``vmap``.

Pyro's own enumeration lines the values up in dimensions left of the plates and multiplies each plate out. Two of its
steps do not run under ``torch.func``; this module replaces those.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.errors import DataError, FitError
from ppgen.programs.sites import Program

__all__ = ["Sums", "enumerated_log_prob", "enumerating", "expected_bound", "unscaled"]

MOST_VALUES = 1 << 20  # joint values of sites that depend on each other


def enumerating(program: Program, depth: int | None) -> Program:
    """The program with every discrete latent site enumerated, left of plates nested ``depth`` deep.

    With ``depth`` None, left of what the program that ran before it enumerated.
    """
    configured = config_enumerate(program)

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (the program's own)
        with _Enumerate(first_available_dim=None if depth is None else -1 - depth):
            return configured(*args, **kwargs)

    return run


def enumerated_log_prob(trace: poutine.Trace) -> Float[Tensor, ""]:
    """Log density of a trace, summed over the joint values of its enumerated sites.

    What depends on an enumerated site in a minibatch is summed out before it is scaled up.

    Raises
    ------
    DataError : so many sites depend on each other that their joint values do not fit.
    FitError : enumerated sites that depend on each other are scaled by different factors.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    enumerated = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    total: Any = 0.0
    scaled: dict[float, OrderedDict[frozenset[str], list[Tensor]]] = {}
    for site in _sites(trace):
        if not enumerated & set(site["packed"]["log_prob"]._pyro_dims):
            total = total + site["log_prob_sum"]
            continue
        plates = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        factors = scaled.setdefault(float(site["scale"]), OrderedDict())
        factors.setdefault(plates, []).append(unscaled(site))
    _check_one_scale(scaled.values(), enumerated)
    for scale, factors in scaled.items():
        total = total + scale * contract_to_tensor(factors, enumerated, ring=Sums())
    return torch.as_tensor(total)


def expected_bound(p: poutine.Trace, q: poutine.Trace) -> Float[Tensor, ""]:
    """``log p - log q`` averaged over the values of the sites that are enumerated in the guide's trace ``q``.

    Each term is averaged over those sites that it depends on, and that those depend on.
    """
    for trace in (p, q):
        trace.compute_log_prob()
    p.pack_tensors()
    q.pack_tensors(p.plate_to_symbol)
    weights = {
        site["infer"]["_dim_to_symbol"][site["infer"]["_enumerate_dim"]]: unscaled(site)
        for site in _sites(q)
        if "_enumerate_dim" in site["infer"]
    }
    total: Any = 0.0
    for sign, trace in ((1.0, p), (-1.0, q)):
        for site in _sites(trace):
            total = total + sign * _expected(site["name"], site["packed"]["log_prob"], weights)
    return torch.as_tensor(total)


def _sites(trace: poutine.Trace) -> Iterator[Any]:
    sites: dict[str, Any] = dict(trace.nodes)
    return (site for site in sites.values() if site["type"] == "sample" and not site_is_subsample(site))


def unscaled(site: Any) -> Any:  # noqa: ANN401 (a node of a trace; a tensor that names its axes)
    """Masked log density without its scale."""
    packed = site["packed"]["log_prob"]
    if isinstance(site["scale"], float | int) and site["scale"] == 1:
        return packed
    value: Any = packed / site["scale"]
    value._pyro_dims = packed._pyro_dims
    return value


def _check_one_scale(groups: Collection[Mapping[frozenset[str], Sequence[Any]]], enumerated: set[str]) -> None:
    seen: set[str] = set()
    for factors in groups:
        own = {symbol for terms in factors.values() for term in terms for symbol in term._pyro_dims} & enumerated
        if own & seen:
            raise FitError(
                "density: discrete sites that depend on each other must be scaled alike, some are in a minibatch and "
                "some are not; move them into the same plates"
            )
        seen |= own


def _expected(name: str, term: Any, weights: Mapping[str, Any]) -> Tensor:  # noqa: ANN401 (tensors that name their axes)
    """Sum of a term over its plates, averaged over the enumerated sites that it depends on."""
    needed = set(term._pyro_dims) & set(weights)
    while more := {s for own in needed for s in weights[own]._pyro_dims if s in weights} - needed:
        needed |= more
    factors = [weights[symbol] for symbol in sorted(needed)]
    order = sorted({symbol for tensor in (term, *factors) for symbol in tensor._pyro_dims})
    if set(order) - needed - set(term._pyro_dims):
        raise FitError(
            f"svi: site {name!r} must be in every plate of the discrete sites that it depends on; move it there"
        )
    aligned = [_aligned(tensor, order) for tensor in (term, *factors)]
    if math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in aligned))) > MOST_VALUES:
        raise DataError(
            f"svi: site {name!r} must depend on at most {MOST_VALUES} joint values of discrete sites and plates, it "
            "depends on more; leave discrete sites out of the guide, or sum them out by a distribution of "
            "ppgen.distributions"
        )
    probability = torch.stack(torch.broadcast_tensors(*aligned[1:])).sum(0).exp() if factors else 1.0
    return (aligned[0] * probability).sum()


@final
class _Enumerate(EnumMessenger):
    """Pyro's, which asks a value for its ``data`` only to see its shape: values under ``vmap`` have none."""

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        value = msg["value"]
        msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value


@final
class Sums(LogRing):
    """Pyro's ring of log sums and products, by broadcasting: its own einsum has no rule for ``vmap``."""

    def sumproduct(self, terms: Sequence[Any], dims: Collection[str]) -> Any:  # noqa: ANN401 (tensors that name their axes)
        sizes = {name: size for term in terms for name, size in zip(term._pyro_dims, term.shape, strict=True)}
        if math.prod(sizes.values()) > MOST_VALUES:
            raise DataError(
                f"density: discrete sites that depend on each other must have at most {MOST_VALUES} joint values, got "
                f"{math.prod(sizes.values())}; use a distribution of ppgen.distributions that sums them out"
            )
        kept = sorted(set(sizes) - set(dims))
        order = [*kept, *sorted(dims)]
        total = torch.stack(torch.broadcast_tensors(*(_aligned(term, order) for term in terms))).sum(0)
        summed: Any = total.logsumexp(tuple(range(len(kept), len(order)))) if dims else total
        summed._pyro_dims = "".join(kept)
        return summed


def _aligned(term: Any, order: Sequence[str]) -> Tensor:  # noqa: ANN401 (a tensor that names its axes)
    """The term with its axes in this order, length one where it has none."""
    names = term._pyro_dims
    moved = term.permute([names.index(name) for name in order if name in names])
    return moved[tuple(slice(None) if name in names else None for name in order)]
