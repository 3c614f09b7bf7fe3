r"""Generalised linear observations of each state: features whose predictor is linear in given inputs.

.. math:: \eta_{tkd} = w_{kd}^\top [u_t; 1], \qquad x_{td} \mid z_t = k \sim
    \mathcal N(\eta_{tkd}, \sigma_{kd}^2),\ \mathrm{Bern}(\mathrm{logit}^{-1} \eta_{tkd}),\
    \mathrm{Pois}(e^{\eta_{tkd}})\ \text{or}\ \mathrm{Cat}(\mathrm{softmax}\, \eta_{tkd})

where :math:`\eta` of a categorical feature has a number for each category. A missing entry's factor is one.

Reference: McCullagh & Nelder (1989).
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Int
from pyro import distributions as dist
from torch import Tensor

from ppgen.errors import DataError
from ppgen.families.family import Sampler

__all__ = ["LIKELIHOODS", "GeneralizedLinear"]

LIKELIHOODS = ("normal", "bernoulli", "categorical", "poisson")
LARGEST_LOG_RATE = 30.0  # of a Poisson feature, so that no rate is infinite
NOISE_SPREAD = 1.0  # standard deviation of the logarithm of the noise in its prior


@final
class GeneralizedLinear:
    """Likelihood of ``features`` columns given ``inputs`` and the state.

    Parameters
    ----------
    features, inputs : numbers D and U.
    likelihood : ``"normal"``, ``"bernoulli"``, ``"categorical"`` or ``"poisson"``.
    categories : number V of categories, numbered from zero, of a categorical feature.
    scale : prior standard deviation of the weights.
    option : what the model calls its likelihood, for messages.
    """

    def __init__(
        self,
        who: str,
        features: int,
        inputs: int,
        likelihood: str,
        categories: int | None,
        scale: float,
        option: str = "likelihood",
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise DataError(f"{who}: {option} must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        if (likelihood == "categorical") != (categories is not None):
            raise DataError(f'{who}: categories must be given with "categorical", and only then, got {categories!r}')
        if categories is not None and (not isinstance(categories, int) or categories < 2):
            raise DataError(f"{who}: categories must be a whole number of at least 2, got {categories!r}")
        for name, value, least in (("features", features, 1), ("inputs", inputs, 0)):
            if not isinstance(value, int) or value < least:
                raise DataError(f"{who}: {name} must be a whole number of at least {least}, got {value!r}")
        if not 0 < scale < float("inf"):
            raise DataError(f"{who}: scale must be positive, got {scale}")
        self.who, self.features, self.inputs = who, features, inputs
        self.likelihood, self.categories, self.scale = likelihood, categories, float(scale)

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Site -> its axes after that of the states."""
        category = ("category",) if self.categories else ()
        weights = {"weights": ("feature", *category, "regressor")}
        return weights | ({"noise": ("feature",)} if self.likelihood == "normal" else {})

    def draw(self, states: int, sample: Sampler) -> dict[str, Tensor]:
        """Draw the weights (K, D[, V], U + 1) and, of a normal likelihood, the noise (K, D)."""
        shape = (states, self.features, *([self.categories] if self.categories else []), self.inputs + 1)
        zero = torch.zeros(shape, dtype=torch.float64)
        found = {"weights": sample("weights", dist.Normal(zero, self.scale).to_event(len(shape)))}
        if self.likelihood == "normal":
            log_noise = torch.full((states, self.features), -0.5, dtype=torch.float64)
            found["noise"] = sample("noise", dist.LogNormal(log_noise, NOISE_SPREAD).to_event(2))
        return found

    def potential(self, x: Float[Tensor, "*B D"], theta: Mapping[str, Tensor], u: Tensor) -> Float[Tensor, "*B K"]:
        """Log density of what is seen of each row in each state."""
        seen = ~torch.isnan(x)[..., None, :]
        value = torch.nan_to_num(x)[..., None, :]
        score = self._distribution(theta, u).log_prob(value)
        return torch.where(seen, score, 0.0).sum(-1)

    def sample(self, theta: Mapping[str, Tensor], u: Tensor, z: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """One draw of every row in its state."""
        return self._distribution(theta, u, z).sample().to(u)

    def check(self, x: Tensor, axes: str) -> None:
        """Refuse data that this likelihood cannot take, in words."""
        if x.shape[-1] != self.features:
            raise DataError(f"{self.who}: x must have shape ({axes}, D={self.features}), got {tuple(x.shape)}")
        if torch.isinf(x).any():
            raise DataError(f"{self.who}: x must be finite or NaN, got {_first(x, torch.isinf(x))}")
        words, odd = {
            "normal": ("numbers", torch.zeros_like(x).bool()),
            "bernoulli": ("zeros and ones", (x != 0) & (x != 1)),
            "poisson": ("counts", (x < 0) | (x != x.round())),
            "categorical": (
                f"categories from 0 to {(self.categories or 0) - 1}",
                _no_category(x, self.categories or 0),
            ),
        }[self.likelihood]
        if bool((odd := odd & ~torch.isnan(x)).any()):
            raise DataError(f"{self.who}: x must be {words} or NaN, got {_first(x, odd)}")

    def checked_inputs(self, x: Tensor, u: Any) -> Tensor:  # noqa: ANN401
        """The inputs and a one for each row (or step) of ``x``: (N, U + 1), or (N, T, U + 1) of sequences."""
        batch = x.shape[:-1]
        if not self.inputs and u is None:
            return torch.ones(*batch, 1, dtype=torch.float64, device=x.device)
        if not (isinstance(u, Tensor) and u.shape[-1] == self.inputs):
            came = f"shape {tuple(u.shape)}" if isinstance(u, Tensor) else "none" if u is None else "several by name"
            raise DataError(f"{self.who}: u must have {self.inputs} inputs, got {came}")
        u = u.to(torch.float64)
        u = u[:, None].expand(*batch, -1) if u.ndim == x.ndim - 1 else u
        return torch.cat([u, torch.ones_like(u[..., :1])], -1)

    def _distribution(self, theta: Mapping[str, Tensor], u: Tensor, z: Tensor | None = None) -> Any:  # noqa: ANN401
        """Of every row in every state, or in the state ``z``."""
        weights = theta["weights"]
        if z is None:
            predictor = (u @ weights.flatten(0, -2).mT).unflatten(-1, weights.shape[:-1])
        else:
            predictor = (weights.flatten(1, -2)[z] @ u[..., None])[..., 0].unflatten(-1, weights.shape[1:-1])
        if self.likelihood == "normal":
            return dist.Normal(predictor, theta["noise"] if z is None else theta["noise"][z], validate_args=False)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=predictor, validate_args=False)
        if self.likelihood == "poisson":
            return dist.Poisson(predictor.clamp(max=LARGEST_LOG_RATE).exp(), validate_args=False)
        return dist.Categorical(logits=predictor, validate_args=False)


def _no_category(x: Tensor, categories: int) -> Tensor:
    return (x < 0) | (x >= categories) | (x != x.round())


def _first(x: Tensor, odd: Tensor) -> str:
    where = tuple(odd.nonzero()[0].tolist())
    return f"{x[where].item()} at {where}"
