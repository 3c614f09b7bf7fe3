r"""What is missing, modelled together with the data: a wrapper of any conjugate model.

.. math::
    x &\sim \text{the model}, \qquad w_d \sim \mathcal N(w_0, s^2 I), \\
    P(x_{nd} \text{ is missing}) &= \sigma(w_d^\top [x_{nd}; 1]) \;\text{(``"self_masking"``)}
    \quad\text{or}\quad \sigma(w_d^\top [x_n; 1]) \;\text{(``"logistic"``)}

Every model of the suite takes what is missing to be missing at random: given what was seen, whether an entry is missing
says nothing of its value. Where large values are hidden because they are large, that is wrong, and means, spreads and
imputations are biased. This model learns how what is missing depends on the values, as far as the data and the model's
shape can say: the dependence is identified by the tails that the model expects and does not see, so look at how wide
the posterior of the weights is.

There is no closed form: fit by ``mcmc.fit``, which takes a Gibbs sampler for it. Scale your features to about unit
variance; the priors assume it. A row of which nothing was seen counts:
that all of it is missing says something of it.

References: Rubin (1976); Ipsen, Mattei & Frellsen (2021), §3, for the mechanisms; Little & Rubin (2019), ch. 15.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.collapsed.base import Collapsed
from ppgen.collapsed.not_at_random import NotAtRandom
from ppgen.data.parts import Inputs
from ppgen.errors import DataError
from ppgen.families.family import Factor, Natural
from ppgen.families.moved import Move
from ppgen.families.normal import Normal
from ppgen.model import Conjugate, Model, statistic

__all__ = ["MissingMechanism"]

KINDS = ("self_masking", "logistic")


@final
class MissingMechanism(Conjugate):
    r"""``MissingMechanism(GMM(3, 2), "self_masking")``: data as its model takes them, NaN where missing.

    Parameters
    ----------
    model : a conjugate model of whole data, whose missing entries do not depend on each other given its latents.
    mechanism : ``"self_masking"``: whether an entry is missing depends on its own value; ``"logistic"``: on the values
        of all features in its row or at its step.
    slope : prior mean of the weight of an entry's own value: positive where larger values are more often missing. Which
        way it goes, data of few rows often cannot say.
    scale : prior standard deviation of the weights, :math:`s`, per unit of ``x``.
    """

    only_gibbs: ClassVar[bool] = True

    def __init__(
        self, model: Model, mechanism: str = "self_masking", *, slope: float = 0.0, scale: float = 2.0
    ) -> None:
        super().__init__()
        if not isinstance(model, Conjugate) or isinstance(model, MissingMechanism):
            raise DataError(
                f"MissingMechanism: model must be a conjugate model, such as GMM, HMM, CCA or LDS, got "
                f"{type(model).__name__}"
            )
        if mechanism not in KINDS:
            raise DataError(f"MissingMechanism: mechanism must be one of {KINDS}, got {mechanism!r}")
        if not 0 < scale < float("inf"):
            raise DataError(f"MissingMechanism: scale must be positive, got {scale!r}")
        if not abs(slope) < float("inf"):
            raise DataError(f"MissingMechanism: slope must be finite, got {slope!r}")
        self.whole, self.mechanism, self.slope, self.scale = model, mechanism, float(slope), float(scale)
        self.features = _features(model)
        self.data_dims = model.data_dims  # type: ignore[misc]

    @property
    def exchangeable(self) -> tuple[str, ...]:
        """Those of the model."""
        return self.whole.exchangeable

    @property
    def config(self) -> dict[str, Any]:
        return {"model": self.whole, "mechanism": self.mechanism, "slope": self.slope, "scale": self.scale}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {**self.whole.dims, "mask_weights": ("feature", "mask_regressor")}

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        own = ["own"] if self.mechanism == "self_masking" else [f"x{d}" for d in range(self.features)]
        return {**self.whole.coords, "mask_regressor": [*own, "one"]}

    def composed(self, coords: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        return self.whole.composed(coords)

    @property
    def points(self) -> Mapping[str, Tensor]:
        return self.whole.points

    @property
    def starts(self) -> tuple[str, ...]:
        return self.whole.starts

    @property
    def ordered(self) -> bool:
        return self.whole.ordered

    @property
    def latent_width(self) -> int:
        return self.whole.latent_width

    def moved(self, theta: Mapping[str, Tensor], move: Move) -> tuple[dict[str, Tensor], Tensor]:
        return self.whole.moved(theta, move)

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        family, alone = Normal("mask_weights"), self.mechanism == "self_masking"
        width = 2 if alone else self.features + 1
        location = torch.zeros(self.features, width, dtype=torch.float64)
        location[range(self.features), [0] * self.features if alone else range(self.features)] = self.slope
        eta = family.natural(location=location, precision=torch.eye(width, dtype=torch.float64) / self.scale**2)
        return {**self.whole.natural_prior(**points), "mask_weights": Factor(family, eta)}

    def model(self, x: Tensor, *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x, mask): the model's program, its data observed together with what is missing of them."""
        weights = statistic("mask_weights", self.natural_prior()["mask_weights"])
        with _Masked(weights, own=self.mechanism == "self_masking"):
            self.whole.model(x, u=u, total=total)

    def guess(self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str) -> list[dict[str, Tensor]]:
        """What the model guesses.

        Raises
        ------
        DataError : data without a gap.
        """
        if not any(torch.isnan(x).any() for x in batches):
            raise DataError(
                "MissingMechanism: x must have missing entries (NaN), got none, so that there is nothing to learn "
                f"about them; fit the {type(self.whole).__name__} by itself"
            )
        return self.whole.guess(batches, inputs, start)

    def log_hyperprior(self) -> Tensor:
        return self.whole.log_hyperprior()

    def observations(self, x: object) -> xr.DataArray:
        return self.whole.observations(x)

    def check(self, x: Tensor) -> None:
        self.whole.check(x)

    def cautions(self, x: Tensor, u: Inputs) -> list[str]:
        return self.whole.cautions(x, u)

    def remarks(self, theta: Mapping[str, Tensor]) -> list[str]:
        return self.whole.remarks(theta)

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.whole.turned(theta)

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        return self.whole.input_coords(names)

    def renumbered(self, axis: str, order: Tensor) -> "MissingMechanism":
        """A copy whose model follows ``order``."""
        return MissingMechanism(**{**self.config, "model": self.whole.renumbered(axis, order)})


@final
class _Masked(Messenger):
    """Observes data together with what is missing of them, in the place of a collapsed distribution of the data."""

    def __init__(self, weights: Natural, *, own: bool) -> None:
        super().__init__()
        self.weights, self.own = weights, own

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if msg["is_observed"] and isinstance(msg["fn"], Collapsed):
            msg["fn"] = NotAtRandom(msg["fn"], self.weights, own=self.own)


def _features(model: Conjugate) -> int:
    """The number of features of a model's data."""
    for owner in (model, getattr(model, "emission", None)):
        width = getattr(owner, "features", None)
        if isinstance(width, int):
            return width
    raise DataError(f"MissingMechanism: {type(model).__name__} must say how many features it has, in `features`")
