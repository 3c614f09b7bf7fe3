r"""Factorial hidden Markov model: independent Markov chains whose effects on the observations add.

.. math::
    \pi^{(c)} &\sim \mathrm{Dir}(\alpha / K_c), \quad P^{(c)}_k \sim \mathrm{Dir}(\alpha / K_c + \kappa e_k), \quad
    ([W, b], R) \sim \text{matrix-normal inverse-Wishart} \\
    z^{(c)}_1 &\sim \mathrm{Cat}(\pi^{(c)}), \quad z^{(c)}_t \sim \mathrm{Cat}(P^{(c)}_{z^{(c)}_{t-1}}), \quad
    x_t \sim \mathcal N\Big(b + \sum_c W^{(c)}_{z^{(c)}_t},\; R\Big)

Chains with few combinations of states are summed out exactly together; with more than ``product`` combinations they
are held in mean field, in groups of few, and the evidence is a lower bound (:mod:`ppgen.collapsed.factorial_markov`).
Only differences between the effects of a chain's states are determined by data; their prior around zero fixes the rest.
NaN in ``x`` is missing at random: it is integrated out. Scale your features to about unit variance; the priors assume
it.

Reference: Ghahramani & Jordan (1997).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.collapsed.factorial_markov import Chain, FactorialMarkov, ProductMarkov
from ppgen.data.arrays import exists
from ppgen.data.parts import Inputs
from ppgen.diagnostics.chains_alike import exchanged_alike
from ppgen.emissions.additive_clusters import additive_clusters
from ppgen.errors import DataError
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor
from ppgen.families.regression import Regression
from ppgen.model import Conjugate

__all__ = ["FactorialHMM"]


@final
class FactorialHMM(Conjugate):
    r"""``FactorialHMM([2, 3], features=4)``: data ``x`` of shape (N, T, D).

    Parameters
    ----------
    chains : the number of states of each chain, or {name: number}.
    features : number of features D.
    covariance : ``"diagonal"``, ``"full"`` or ``"spherical"``, of the noise of the observations.
    stickiness : extra prior count of staying in a state, :math:`\kappa`.
    concentration : total prior count of transitions from a state, :math:`\alpha`; the chain's number of states where
        None.
    product : number of combinations of states up to which chains are summed out together, exactly. With more they are
        held in groups of at most 16 combinations, or ``product`` if that is less; 1 holds each chain by itself.
    noise : prior guess of the variance of the noise of a feature, in squared units of ``x``.
    strength : prior precision of the effects, in units of the precision of the noise.
    """

    def __init__(
        self,
        chains: Sequence[int] | Mapping[str, int],
        features: int,
        *,
        covariance: str = "diagonal",
        stickiness: float = 0.0,
        concentration: float | None = None,
        product: int = 256,
        noise: float = 0.1,
        strength: float = 0.01,
    ) -> None:
        super().__init__()
        named = dict(chains) if isinstance(chains, Mapping) else {str(i): k for i, k in enumerate(chains)}
        self.chains = {str(name): states for name, states in named.items()}
        if not self.chains or any(not isinstance(k, int) or k < 2 for k in self.chains.values()):
            raise DataError(f"FactorialHMM: chains must be numbers of states, each at least 2, got {chains!r}")
        if odd := [name for name in self.chains if not name.isalnum() and not name.isidentifier()]:
            raise DataError(f"FactorialHMM: chains must have names of letters, digits and _, got {odd}")
        if not isinstance(features, int) or features < 1:
            raise DataError(f"FactorialHMM: features must be a whole number of at least 1, got {features!r}")
        self.features, self.covariance, self.product = features, covariance, product
        self.stickiness, self.noise, self.strength = float(stickiness), float(noise), float(strength)
        self.concentration = None if concentration is None else float(concentration)
        if not (0 <= self.stickiness < math.inf and 0 < (self.concentration or 1.0) < math.inf):
            raise DataError(
                "FactorialHMM: concentration must be positive and stickiness zero or more, got "
                f"{concentration} and {stickiness}"
            )
        if not (0 < self.noise < math.inf and 0 < self.strength < math.inf):
            raise DataError(f"FactorialHMM: noise and strength must be positive, got {noise} and {strength}")
        self.emission = Regression(
            features, sum(self.chains.values()) + 1, "effect", covariance, noise=noise, strength=strength
        )

    @property
    def config(self) -> dict[str, Any]:
        names = ("features", "covariance", "stickiness", "concentration", "product", "noise", "strength")
        return {"chains": self.chains} | {name: getattr(self, name) for name in names}

    @property
    def together(self) -> bool:
        """Whether the chains are summed out together, exactly."""
        return math.prod(self.chains.values()) <= self.product

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name in self.chains:
            states = f"{name}_state"
            found |= {f"initial_{name}": (states,), f"transition_{name}": (states, f"next_{states}")}
        return found | self.emission.dims("feature", "regressor")

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        found: dict[str, Sequence[Any]] = {}
        for name, states in self.chains.items():
            found |= {f"{name}_state": range(states), f"next_{name}_state": range(states)}
        return {**found, **self.composed(found)}

    def composed(self, coords: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        return {"regressor": [*(f"{name}:{k}" for name in self.chains for k in coords[f"{name}_state"]), "one"]}

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Draws with the states of each chain, and chains of the same number of states, numbered alike."""
        return exchanged_alike(theta, self.chains, self.emission.family.coefficients)

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        found = {}
        for name, K in self.chains.items():
            start = torch.full((K,), (self.concentration or K) / K, dtype=torch.float64)
            rows = start + self.stickiness * torch.eye(K, dtype=torch.float64)
            for kind, eta in (("initial", start), ("transition", rows)):
                found[f"{kind}_{name}"] = Factor(Dirichlet(f"{kind}_{name}"), {"log_probability": eta})
        return {**found, "effect": self.emission.prior()}

    def model(self, x: Float[Tensor, "N T D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then whole sequences with the paths of all chains summed out, or held."""
        if u is not None:
            raise DataError("FactorialHMM: takes no inputs u, got some; leave them out (they would be ignored)")
        s = self.statistics()
        chains = {
            f"z_{name}": Chain(s[f"initial_{name}"]["log_probability"], s[f"transition_{name}"]["log_probability"])
            for name in self.chains
        }
        given = (chains, self.emission, s["effect"], (x.shape[0], x.shape[1]))
        summed = ProductMarkov(*given) if self.together else FactorialMarkov(*given, min(GROUP, self.product))
        with pyro.plate("sequence", total or len(x), subsample_size=len(x)):
            pyro.sample("x", summed, obs=x)

    @property
    def starts(self) -> tuple[str, ...]:
        return ("clusters", "random")

    def guess(
        self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str
    ) -> list[dict[str, Int[Tensor, "N T"]]]:
        """Paths of all chains: of the additive clustering of frames that leaves least (``"clusters"``), or of one such
        clustering from ``"random"`` frames.
        """
        if start not in self.starts:
            raise DataError(f'FactorialHMM: a start is "clusters" or "random", got {start!r}')
        there = [exists(x) for x in batches]
        rows = torch.cat([x[own] for x, own in zip(batches, there, strict=True)])
        if len(rows) < sum(self.chains.values()):
            raise DataError(
                f"FactorialHMM: x must have at least as many frames as there are states ({sum(self.chains.values())}), "
                f"got {len(rows)}; give fewer states"
            )
        z = additive_clusters(rows, list(self.chains.values()), tries=1 if start == "random" else TRIES)
        found = []
        for part, own in zip(z.split([int(own.sum()) for own in there]), there, strict=True):
            paths = torch.zeros(*own.shape, len(self.chains), dtype=torch.long)
            paths[own] = part
            found.append({f"z_{name}": path for name, path in zip(self.chains, paths.unbind(-1), strict=True)})
        return found

    def check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[-1] != self.features:
            raise DataError(
                f"FactorialHMM: x must have shape (N, T, D={self.features}), got {tuple(x.shape)}; one row per time "
                "step, NaN for what was not observed"
            )
        if torch.isinf(x).any():
            where = tuple(torch.isinf(x).nonzero()[0].tolist())
            raise DataError(f"FactorialHMM: x must be finite or NaN, got {x[where].item()} at {where}")


GROUP = 16  # combinations of states up to which chains that are too many for a product are held as one group
TRIES = 10  # additive clusterings of which a start takes the best
