r"""Linear dynamical system with conjugate priors, driven by inputs on request.

.. math::
    Q^{-1} &\sim \mathcal W(L + 2, (q I)^{-1}), \quad A \mid Q \sim \mathcal{MN}([I, 0], Q, I), \qquad
    \text{and alike } (C, R) \\
    h_1 &\sim \mathcal N(0, I), \quad h_t \sim \mathcal N(A\,[h_{t-1}; u_t; 1], Q), \quad
    x_t \sim \mathcal N(C\,[h_t; u_t; 1], R)

The continuous states are summed out exactly, so the guide covers the parameters only. With sequences of one step it is
factor analysis. NaN in ``x`` is missing at random: it is integrated out. Scale your features to about unit variance;
the priors assume it. The states may be rotated without changing anything else, which a posterior over A and C shows;
predictions do not depend on it.

References: Roweis & Ghahramani (1999); Ghahramani & Hinton (1996); Beal (2003), §5.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.collapsed.linear_gaussian import LinearGaussian
from ppgen.data.arrays import exists
from ppgen.data.parts import Inputs
from ppgen.diagnostics.rotation import turns
from ppgen.errors import DataError
from ppgen.families.family import Factor
from ppgen.families.moved import Move, moved
from ppgen.families.regression import Regression
from ppgen.model import Conjugate

__all__ = ["LDS", "check_numbers", "turned_alike"]


FAR_FROM_ZERO, SMALL = 10.0, 0.1  # an input's mean in its standard deviations, and the least of these


@final
class LDS(Conjugate):
    """``LDS(latent=2, features=5)``: data ``x`` of shape (N, T, D), and inputs ``u`` (N, T, U) or (N, U).

    Parameters
    ----------
    latent : width L of the state.
    features : number of features D.
    inputs : number of inputs U that drive the states and shift the observations; 0 for none.
    covariance : ``"diagonal"``, ``"full"`` or ``"spherical"``, of the noise of the observations.
    process_noise : prior guess of the variance of a step of the state.
    noise : prior guess of the variance of the noise of a feature, in squared units of ``x``.
    strength : prior precision of the coefficients, in units of the precision of the noise.
    """

    who = "LDS"  # in messages: what a person made, where this is a part of it

    def __init__(
        self,
        latent: int,
        features: int,
        *,
        inputs: int = 0,
        covariance: str = "diagonal",
        process_noise: float = 0.1,
        noise: float = 0.05,
        strength: float = 0.1,
    ) -> None:
        super().__init__()
        sizes, scales = (latent, features, inputs), (process_noise, noise, strength)
        check_numbers(self.who, sizes, scales)
        self.latent, self.features, self.inputs, self.covariance = latent, features, inputs, covariance
        self.process_noise, self.noise, self.strength = float(process_noise), float(noise), float(strength)
        regressors = latent + inputs + 1
        self.dynamics = Regression(latent, regressors, "dynamics", noise=process_noise, strength=1.0, walk=True)
        self.emission = Regression(features, regressors, "loading", covariance, noise=noise, strength=strength)

    @property
    def config(self) -> dict[str, Any]:
        names = ("latent", "features", "inputs", "covariance", "process_noise", "noise", "strength")
        return {name: getattr(self, name) for name in names}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self.dynamics.dims("latent", "regressor") | self.emission.dims("feature", "regressor")

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        names = [f"h{i}" for i in range(self.latent)]
        return {"latent": names, **self.input_coords([f"u{i}" for i in range(self.inputs)])}

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        return {"regressor": [*(f"h{i}" for i in range(self.latent)), *map(str, names), "one"]}

    def composed(self, coords: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        return {"regressor": [*coords["latent"], *list(coords["regressor"])[self.latent :]]}

    def remarks(self, theta: Mapping[str, Tensor]) -> list[str]:
        """A warning that the dynamics grow, if they do in most draws."""
        radius = float(torch.linalg.eigvals(theta["dynamics"][..., : self.latent]).abs().amax(-1).median())
        if radius <= 1:
            return []
        return [
            f"{self.who}: the dynamics grow, their spectral radius is {radius:.4g} (median of the draws), so "
            "forecasts spread ever wider: look at quantiles, not at means; differences of a series that trends do not "
            "grow"
        ]

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Draws whose states are turned alike, by the loadings of the features."""
        return turned_alike(theta, self.dynamics, self.emission)

    @property
    def latent_width(self) -> int:
        return self.latent

    def moved(self, theta: Mapping[str, Tensor], move: Move) -> tuple[dict[str, Tensor], Tensor]:
        return moved(theta, self.dynamics, self.emission, move)

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        return {"dynamics": self.dynamics.prior(), "loading": self.emission.prior()}

    def model(self, x: Float[Tensor, "N T D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then whole sequences with their states summed out."""
        one = self.checked_inputs(x, u)
        s = self.statistics()
        with pyro.plate("sequence", total or len(x), subsample_size=len(x)):
            shape = (x.shape[0], x.shape[1])
            states = LinearGaussian(self.dynamics, self.emission, s["dynamics"], s["loading"], shape, one)
            pyro.sample("x", states, obs=x)

    @property
    def starts(self) -> tuple[str, ...]:
        return ("pca", "random")

    def guess(
        self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str
    ) -> list[dict[str, Float[Tensor, "N T L"]]]:
        """States ``h``: scores of the principal components of the filled data (``"pca"``), or ``"random"`` ones."""
        self._check_units(batches, inputs)
        if start == "random":
            return [{"h": torch.randn(*x.shape[:2], self.latent, dtype=torch.float64)} for x in batches]
        if start != "pca":
            raise DataError(f'{self.who}: a start is "pca" or "random", got {start!r}')
        rows = torch.cat([x.reshape(-1, self.features) for x in batches])
        seen = (~torch.isnan(rows)).sum(0).clamp_min(1)
        center = torch.nan_to_num(rows).sum(0) / seen
        filled = torch.nan_to_num(rows - center)
        values, vectors = torch.linalg.eigh(filled.mT @ filled / len(filled))
        width = min(self.latent, self.features)
        project = vectors.flip(-1)[:, :width] / values.flip(-1)[:width].clamp_min(1e-8).sqrt()
        scores = torch.nn.functional.pad(filled @ project, (0, self.latent - width))
        parts = scores.split([x.shape[0] * x.shape[1] for x in batches])
        return [{"h": part.reshape(*x.shape[:2], -1)} for part, x in zip(parts, batches, strict=True)]

    def check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[-1] != self.features:
            raise DataError(
                f"{self.who}: x must have shape (N, T, D={self.features}), got {tuple(x.shape)}; one row per "
                "time step, NaN for what was not observed"
            )
        if torch.isinf(x).any():
            where = tuple(torch.isinf(x).nonzero()[0].tolist())
            raise DataError(f"{self.who}: x must be finite or NaN, got {x[where].item()} at {where}")

    def _check_units(self, batches: Sequence[Tensor], inputs: Sequence[Inputs]) -> None:
        """Refuse inputs that the prior of their coefficients outweighs because of their units."""
        usable = [
            u[exists(x)] if u.shape[:2] == x.shape[:2] else u.reshape(-1, self.inputs)
            for x, u in zip(batches, inputs, strict=True)
            if isinstance(u, Tensor) and u.shape[-1] == self.inputs
        ]
        if not self.inputs or not usable:
            return  # the program refuses what does not fit
        rows = torch.cat(usable)
        mean, spread = rows.mean(0), rows.std(0, correction=0)
        varies = spread > 1e-12 * mean.abs()
        odd = varies & ((mean.abs() > FAR_FROM_ZERO * spread) | (spread < SMALL))
        if odd.any():
            i = int(odd.nonzero()[0, 0])
            raise DataError(
                f"{self.who}: u must be in units of about one around zero, got input {i} with mean "
                f"{float(mean[i]):.3g} and standard deviation {float(spread[i]):.3g}, whose effect the prior would "
                "suppress; standardise, `u = (u - u.mean()) / u.std()`, with the same numbers in forecasts"
            )

    def checked_inputs(self, x: Tensor, u: Inputs) -> Tensor | None:
        """The inputs, as one tensor that fits the model and the data."""
        if self.inputs == 0 and u is not None:
            raise DataError(f"{self.who}: takes no inputs u, got some; pass inputs=... to the model or leave them out")
        if self.inputs and not (isinstance(u, Tensor) and u.shape[-1] == self.inputs):
            came = f"shape {tuple(u.shape)}" if isinstance(u, Tensor) else "none" if u is None else "several by name"
            raise DataError(f"{self.who}: u must have {self.inputs} inputs, as (N, T, U) or (N, U), got {came}")
        if not isinstance(u, Tensor):
            return None
        if u.ndim == 3 and u.shape[1] != x.shape[1]:
            raise DataError(
                f"{self.who}: u must have a row for each of the {x.shape[1]} steps of x, got {u.shape[1]}; a forecast "
                "also needs one for each step ahead"
            )
        return u


def check_numbers(who: str, sizes: tuple[int, int, int], scales: tuple[float, float, float]) -> None:
    """Refuse sizes (latent, features, inputs) that are none, and scales of the prior that are not positive."""
    for name, value, least in zip(("latent", "features", "inputs"), sizes, (1, 1, 0), strict=True):
        if not isinstance(value, int) or value < least:
            raise DataError(f"{who}: {name} must be a whole number of at least {least}, got {value!r}")
    for name, scale in zip(("process_noise", "noise", "strength"), scales, strict=True):
        if not 0 < scale < float("inf"):
            raise DataError(f"{who}: {name} must be positive, got {scale}")


def turned_alike(
    theta: Mapping[str, Tensor], dynamics: Regression, emission: Regression, weights: str | None = None
) -> Mapping[str, Tensor]:
    """Draws {site: (C, S, ...)} of regressions on a state, the state turned alike by the loadings of the features.

    ``weights`` is a site whose last entries along its last axis weigh the state.
    """
    sites = (dynamics.family.coefficients, dynamics.family.sites[0], emission.family.coefficients)
    A, root, C = (theta[site] for site in sites)
    L, rows = dynamics.outputs, C.flatten(0, 1).flatten(1, -2)
    turn = turns(rows[..., :L])
    own = turn.unflatten(0, C.shape[:2])
    own = own if dynamics.states is None else own[:, :, None]
    leaning = own @ root
    found = {} if weights is None else {weights: _last_times_state(theta[weights], turn, L)}
    return {
        **theta,
        **found,
        sites[0]: own @ _times_state(A, own, L),
        sites[1]: torch.linalg.cholesky(leaning @ leaning.mT),
        sites[2]: _times_state(rows, turn, L).reshape(C.shape),
    }


def _times_state(coefficients: Tensor, turn: Tensor, L: int) -> Tensor:
    """Coefficients of a state that was turned, beside those of other regressors."""
    return torch.cat([coefficients[..., :L] @ turn.mT, coefficients[..., L:]], -1)


def _last_times_state(weights: Float[Tensor, "C S n R"], turn: Float[Tensor, "CS L L"], L: int) -> Tensor:
    """Weights of a state that was turned, behind those of other regressors."""
    own = turn.unflatten(0, weights.shape[:2])
    return torch.cat([weights[..., :-L], weights[..., -L:] @ own.mT], -1)
