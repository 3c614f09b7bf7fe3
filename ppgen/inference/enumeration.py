"""Small discrete latent sites of a Pyro program, summed out under ``vmap``.

Pyro's own enumeration lines the values up in dimensions left of the plates and multiplies each plate out. Two of its
steps do not run under ``torch.func``; this module replaces those.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
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

from ppgen.errors import DataError
from ppgen.inference.sites import Program

__all__ = ["enumerated_log_prob", "enumerating"]

MOST_VALUES = 1 << 20  # joint values of sites that depend on each other


def enumerating(program: Program, depth: int) -> Program:
    """The program with every discrete latent site enumerated, left of plates nested ``depth`` deep."""
    configured = config_enumerate(program)

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (the program's own)
        with _Enumerate(first_available_dim=-1 - depth):
            return configured(*args, **kwargs)

    return run


def enumerated_log_prob(trace: poutine.Trace) -> Float[Tensor, ""]:
    """Log density of a trace, summed over the joint values of its enumerated sites.

    Raises
    ------
    DataError : so many sites depend on each other that their joint values do not fit.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sites: dict[str, Any] = dict(trace.nodes)
    for site in sites.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            plates = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
            factors.setdefault(plates, []).append(site["packed"]["log_prob"])
    enumerated = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    return contract_to_tensor(factors, enumerated, ring=_Sums())


@final
class _Enumerate(EnumMessenger):
    """Pyro's, which asks a value for its ``data`` only to see its shape: values under ``vmap`` have none."""

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        value = msg["value"]
        msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value


@final
class _Sums(LogRing):
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
