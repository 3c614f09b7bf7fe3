"""Digests that tell one fit from another."""

import hashlib

from ppgen.results.fit import Fit
from ppgen.results.posterior import Factors

__all__ = ["described"]


def described(start: Fit | str) -> str:
    """Describe a start of a run: a name by itself, an earlier fit by a digest of all it holds."""
    if not isinstance(start, Fit):
        return str(start)
    posterior = start.posterior
    if isinstance(posterior, Factors):
        held = {f"{name}/{k}": v for name, factor in posterior.factors.items() for k, v in factor.eta.items()}
        held |= posterior.points
    else:
        held = dict(posterior.sites)
    total = hashlib.sha256(type(posterior).__name__.encode())
    for name, value in {**held, **start.model.state_dict(prefix="model/")}.items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f"fit {total.hexdigest()}"
