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
from ppgen.diagnostics.groups_alike import grouped_alike
from ppgen.emissions.generalized_linear import GeneralizedLinear
from ppgen.emissions.units import input_cautions
from ppgen.errors import DataError
from ppgen.model import Model

__all__ = ["MixtureOfExperts"]

TRIED, LEAST = 1000, 0.1  # inputs that gates are tried at; the least share of an expert, of an even one


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
    def exchangeable(self) -> tuple[str, ...]:
        """Experts, where all lie behind one gate; groups and their experts move together, see `turned`."""
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

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Draws with groups, and the experts of each, numbered alike; with one gate `exchangeable` says it all."""
        if self.depth == 1:
            return theta
        flat = {site: value.detach().flatten(0, 1) for site, value in theta.items()}
        first, second, own = flat["gate"], flat["second_gate"], flat["weights"].unflatten(1, 2 * (self.experts,))
        parts = [second - second.mean(-2, keepdim=True), own.flatten(3)]
        if "noise" in flat:
            parts.append(flat["noise"].log().unflatten(1, 2 * (self.experts,)))
        groups, members = grouped_alike(torch.cat(parts, -1), first - first.mean(-2, keepdim=True))
        draw = torch.arange(len(first))[:, None]
        chosen = (groups[..., None] * self.experts + members).flatten(1)
        moved = {site: value[draw, chosen] for site, value in flat.items() if "gate" not in site}
        moved |= {"gate": first[draw, groups], "second_gate": second[draw[..., None], groups[..., None], members]}
        return {site: value.unflatten(0, theta["gate"].shape[:2]) for site, value in moved.items()}

    def remarks(self, theta: Mapping[str, Tensor]) -> list[str]:
        """A warning that some experts are hardly ever chosen, at inputs of unit scale, in most draws."""
        u = torch.randn(TRIED, self.inputs, dtype=torch.float64)
        shares = self._gates(torch.cat([u, torch.ones_like(u[:, :1])], -1), theta).exp().mean(-2)
        count = shares.shape[-1]
        used = int((shares > LEAST / count).sum(-1).double().median())
        if used == count:
            return []
        return [
            f"MixtureOfExperts: the gates choose {used} of the {count} experts only, the others at hardly any inputs "
            "of about unit scale; take fewer experts, or compare more starts (n_init) by the density of rows held out"
        ]

    def model(self, x: Float[Tensor, "N D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): gates and experts, then rows with their expert summed out."""
        regressors = self.likelihood.checked_inputs(x, u)
        log_gates = self._gates(regressors, self._draw_gates())
        theta = self.likelihood.draw(log_gates.shape[-1], pyro.sample)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", GatedMixture(log_gates, self.likelihood, theta, regressors), obs=x)

    def _draw_gates(self) -> dict[str, Tensor]:
        zero = torch.zeros(self.experts, self.inputs + 1, dtype=torch.float64)
        found = {"gate": pyro.sample("gate", dist.Normal(zero, self.likelihood.scale).to_event(2))}
        if self.depth == 2:
            zero = zero.expand(self.experts, *zero.shape)
            found["second_gate"] = pyro.sample("second_gate", dist.Normal(zero, self.likelihood.scale).to_event(3))
        return found

    def _gates(self, regressors: Float[Tensor, "N R"], theta: Mapping[str, Tensor]) -> Float[Tensor, "*S N K"]:
        """Log probabilities of the experts of each row, given gates {site: (*S, ...)}."""
        first = (regressors @ theta["gate"].mT).log_softmax(-1)
        if self.depth == 1:
            return first
        second = (regressors @ theta["second_gate"].flatten(-3, -2).mT).unflatten(-1, (self.experts, self.experts))
        return (first[..., None] + second.log_softmax(-1)).flatten(-2)

    def cautions(self, x: Tensor, u: Inputs) -> list[str]:
        """Warnings of inputs in units that the prior of their weights does not suit."""
        return input_cautions("MixtureOfExperts", x, u)

    def check(self, x: Tensor) -> None:
        if x.ndim != 2:
            raise DataError(f"MixtureOfExperts: x must have shape (N, D={self.features}), got {tuple(x.shape)}")
        self.likelihood.check(x, "N")
