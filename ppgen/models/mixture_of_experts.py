r"""Mixture of experts: which generalised linear model a row comes from depends on its inputs.

.. math::
    g_j &\sim \mathcal N(0, s^2 I), \quad w_k \sim \mathcal N(0, s^2 I), \qquad
    P(z_n = k \mid u_n) = \mathrm{softmax}_k(g_k^\top [u_n; 1]), \quad x_n \sim p(x \mid w_{z_n}^\top [u_n; 1])

With ``depth=2`` an expert is reached through two gates, one after the other: the first chooses a group, the second,
which has weights of its own in each group, an expert of it. Experts are summed out exactly, so the guide covers the
parameters only. The priors are not conjugate: fit by `svi`, ``guide="map"`` included, or `mcmc`. NaN in ``x`` is
missing at random: its factor is one. Scale your inputs to about unit variance; the priors assume it.

References: Jacobs, Jordan, Nowlan & Hinton (1991); Jordan & Jacobs (1994).
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.collapsed.gated_mixture import GatedMixture
from ppgen.data.parts import Inputs
from ppgen.emissions.generalized_linear import GeneralizedLinear
from ppgen.errors import DataError
from ppgen.model import Model

__all__ = ["MixtureOfExperts"]


@final
class MixtureOfExperts(Model):
    """``MixtureOfExperts(3, inputs=2, features=1)``: data ``x`` of shape (N, D), inputs ``u`` (N, U).

    Parameters
    ----------
    experts : number of experts; of each group, with ``depth=2``, and of groups.
    inputs : number of inputs U.
    features : number of features D.
    likelihood : of a feature: ``"normal"``, ``"bernoulli"``, ``"categorical"`` or ``"poisson"``.
    categories : number of categories of a categorical feature, numbered from zero.
    depth : 1, or 2 for gates behind gates.
    scale : prior standard deviation of the weights of gates and experts.
    """

    data_dims = ("row", "feature")

    def __init__(
        self,
        experts: int,
        inputs: int,
        features: int,
        *,
        likelihood: str = "normal",
        categories: int | None = None,
        depth: int = 1,
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        if not isinstance(experts, int) or experts < 1:
            raise DataError(f"MixtureOfExperts: experts must be a whole number of at least 1, got {experts!r}")
        if not isinstance(inputs, int) or inputs < 1:
            raise DataError(f"MixtureOfExperts: inputs must be a whole number of at least 1, got {inputs!r}")
        if depth not in (1, 2):
            raise DataError(f"MixtureOfExperts: depth must be 1 or 2, got {depth!r}")
        self.experts, self.inputs, self.features, self.depth = experts, inputs, features, depth
        self.likelihood = GeneralizedLinear("MixtureOfExperts", features, inputs, likelihood, categories, scale)

    @property
    def config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("experts", "inputs", "features", "depth")}
        kind = self.likelihood
        return own | {"likelihood": kind.likelihood, "categories": kind.categories, "scale": kind.scale}

    @property
    def exchangeable(self) -> tuple[str, ...]:  # type: ignore[override]
        """Experts, where all lie behind one gate; groups and their experts may only change places together."""
        return ("expert",) if self.depth == 1 else ()

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        gates: dict[str, tuple[str, ...]] = {"gate": ("expert", "regressor")}
        if self.depth == 2:
            gates = {"gate": ("group", "regressor"), "second_gate": ("group", "member", "regressor")}
        return gates | {site: ("expert", *axes) for site, axes in self.likelihood.dims.items()}

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        inputs = self.input_coords([f"u{i}" for i in range(self.inputs)])
        each = range(self.experts)
        if self.depth == 1:
            return {"expert": each, **inputs}
        return {"group": each, "member": each, "expert": [f"{g}.{m}" for g in each for m in each], **inputs}

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        return {"regressor": [*map(str, names), "one"]}

    def model(self, x: Float[Tensor, "N D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): gates and experts, then rows with their expert summed out."""
        regressors = self.likelihood.checked_inputs(x, u)
        log_gates = self._log_gates(regressors)
        theta = self.likelihood.draw(log_gates.shape[-1], pyro.sample)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", GatedMixture(log_gates, self.likelihood, theta, regressors), obs=x)

    def _log_gates(self, regressors: Float[Tensor, "N R"]) -> Float[Tensor, "N K"]:
        zero = torch.zeros(self.experts, self.inputs + 1, dtype=torch.float64)
        gate = pyro.sample("gate", dist.Normal(zero, self.likelihood.scale).to_event(2))
        first = (regressors @ gate.mT).log_softmax(-1)
        if self.depth == 1:
            return first
        zero = zero.expand(self.experts, *zero.shape)
        within = pyro.sample("second_gate", dist.Normal(zero, self.likelihood.scale).to_event(3))
        second = (regressors @ within.flatten(0, 1).mT).unflatten(-1, (self.experts, self.experts)).log_softmax(-1)
        return (first[..., None] + second).flatten(-2)

    def check(self, x: Tensor) -> None:
        if x.ndim != 2:
            raise DataError(f"MixtureOfExperts: x must have shape (N, D={self.features}), got {tuple(x.shape)}")
        self.likelihood.check(x, "N")
