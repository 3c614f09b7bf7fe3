r"""Switching linear dynamical system with conjugate priors, driven by inputs on request.

.. math::
    \pi &\sim \mathrm{Dir}(\alpha / K), \quad P_k \sim \mathrm{Dir}(\alpha / K + \kappa e_k), \quad
    Q_k^{-1} \sim \mathcal W(L + 2, (q I)^{-1}), \quad A_k \mid Q_k \sim \mathcal{MN}([I, 0], Q_k, I), \qquad
    \text{and alike } (C, R) \\
    z_1 &\sim \mathrm{Cat}(\pi), \quad z_t \sim \mathrm{Cat}(P_{z_{t-1}}), \qquad
    h_1 \sim \mathcal N(0, I), \quad h_t \sim \mathcal N(A_{z_t} [h_{t-1}; u_t; 1], Q_{z_t}), \quad
    x_t \sim \mathcal N(C [h_t; u_t; 1], R)

With ``switching="both"`` every state has a C and R of its own. With ``recurrent=True`` the continuous state says where
the discrete one goes, by logistic functions that break a stick,

.. math::
    P(z_{t+1} = k \mid z_t, h_t) = \sigma(\psi_k) \prod_{l < k} \sigma(-\psi_l), \quad
    \psi_k = w_k^\top [\mathrm{onehot}(z_t); h_t], \quad w_k \sim \mathcal N(\cdot, \cdot),

where at h = 0 the prior of a move has the log odds, and their variance, that the Dirichlet distribution above gives it,
and a weight of h has the standard deviation ``scale``. The order of the states then means something: a stick that is
broken late cannot say where an early state ends.

The two kinds of states have no exact posterior
together: each is exact given the other, so the evidence that engines see is a lower bound (see
:mod:`ppgen.collapsed.switching_linear`). NaN in ``x`` is missing at random: it is integrated out. Scale your features
to about unit variance; the priors assume it.

References: Ghahramani & Hinton (2000); Fox, Sudderth, Jordan & Willsky (2011); Linderman et al. (2017) for
``recurrent``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ppgen.collapsed.recurrent_linear import RecurrentLinear
from ppgen.collapsed.switching_linear import SwitchingLinear
from ppgen.data.arrays import exists
from ppgen.data.parts import Inputs
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.decision_list import decision_list
from ppgen.errors import DataError
from ppgen.expecting import ascended, best_paths, first_factors, observed_given
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor
from ppgen.families.moved import Move, moved
from ppgen.families.normal import Normal
from ppgen.families.regression import Regression
from ppgen.model import Conjugate
from ppgen.models.hmm import HMM
from ppgen.models.lds import LDS, check_numbers, turned_alike

__all__ = ["SLDS"]

START_STEPS = 20  # coordinate updates of the models that a run starts from
WAYS = ("kmeans", "segments-16", "segments-32", "random")  # starts of the autoregressive HMM among these
LAGS, SMALLEST_NOISE = 2, 1e-4
UNPREDICTABLE = 0.8  # share of variance that an autoregression leaves of noise


@final
class SLDS(Conjugate):
    r"""``SLDS(states=3, latent=2, features=5)``: data ``x`` of shape (N, T, D), and inputs ``u`` (N, T, U) or (N, U).

    Parameters
    ----------
    states : number of discrete states K.
    latent : width L of the continuous state.
    features : number of features D.
    inputs : number of inputs U that drive the states and shift the observations; 0 for none.
    recurrent : whether the continuous state pulls at the discrete one.
    switching : what depends on the discrete state, the ``"dynamics"`` or ``"both"`` them and the emission.
    covariance : ``"diagonal"``, ``"full"`` or ``"spherical"``, of the noise of the observations.
    stickiness : extra prior count of staying in a state, :math:`\kappa`.
    concentration : total prior count of transitions from a state, :math:`\alpha`; K where None.
    process_noise : prior guess of the variance of a step of the continuous state.
    noise : prior guess of the variance of the noise of a feature, in squared units of ``x``.
    strength : prior precision of the emission's coefficients, in units of the precision of the noise.
    scale : prior standard deviation of the weights of the continuous state, in log odds; of ``recurrent`` alone.
    """

    def __init__(
        self,
        states: int,
        latent: int,
        features: int,
        *,
        inputs: int = 0,
        recurrent: bool = False,
        switching: str = "dynamics",
        covariance: str = "diagonal",
        stickiness: float = 0.0,
        concentration: float | None = None,
        process_noise: float = 0.1,
        noise: float = 0.05,
        strength: float = 0.1,
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        if not isinstance(states, int) or states < 1:
            raise DataError(f"SLDS: states must be a whole number of at least 1, got {states!r}")
        if not 0 < scale < float("inf"):
            raise DataError(f"SLDS: scale must be positive, got {scale}")
        if recurrent and states < 2:
            raise DataError(f"SLDS: recurrent must be False for fewer than 2 states, got {states}")
        if switching not in ("dynamics", "both"):
            raise DataError(f'SLDS: switching must be "dynamics" or "both", got {switching!r}')
        check_numbers("SLDS", (latent, features, inputs), (process_noise, noise, strength))
        self.system = LDS(latent, features, inputs=inputs, covariance=covariance)
        self.system.who = "SLDS"
        self.states, self.latent, self.features, self.inputs = states, latent, features, inputs
        self.recurrent, self.switching, self.covariance = bool(recurrent), switching, covariance
        self.stickiness = float(stickiness)
        self.concentration = float(states if concentration is None else concentration)
        self.process_noise, self.noise, self.strength = float(process_noise), float(noise), float(strength)
        self.scale = float(scale)
        if not (0 < self.concentration < float("inf") and 0 <= self.stickiness < float("inf")):
            raise DataError(
                "SLDS: concentration must be positive and stickiness zero or more, got "
                f"{self.concentration} and {self.stickiness}"
            )
        regressors, own = latent + inputs + 1, states if switching == "both" else None
        self.dynamics = Regression(
            latent, regressors, "dynamics", noise=process_noise, strength=1.0, walk=True, states=states
        )
        self.emission = Regression(
            features, regressors, "loading", covariance, noise=noise, strength=strength, states=own
        )

    @property
    def config(self) -> dict[str, Any]:
        names = (
            "states", "latent", "features", "inputs", "recurrent", "switching", "covariance", "stickiness",
            "concentration", "process_noise", "noise", "strength", "scale",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def exchangeable(self) -> tuple[str, ...]:
        """Labels of states that a stick is broken for in turn are not."""
        return () if self.recurrent else ("state",)

    @property
    def ordered(self) -> bool:
        return self.recurrent

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        moves = (
            {"transition_weights": ("stick", "cause")} if self.recurrent else {"transition": ("state", "next_state")}
        )
        return (
            {"initial": ("state",)}
            | moves
            | self.dynamics.dims("latent", "regressor")
            | self.emission.dims("feature", "regressor")
        )

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        states = range(self.states)
        if not self.recurrent:
            return {"state": states, "next_state": states, **self.system.coords}
        system = self.system.coords
        return {"state": states, "stick": states[:-1], "cause": _causes(states, system["latent"]), **system}

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        return self.system.input_coords(names)

    def composed(self, coords: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        causes = {"cause": _causes(coords["state"], coords["latent"])} if self.recurrent else {}
        return {**self.system.composed(coords), **causes}

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Draws whose continuous states are turned alike, by the loadings of the features."""
        return turned_alike(theta, self.dynamics, self.emission, "transition_weights" if self.recurrent else None)

    @property
    def latent_width(self) -> int:
        return self.latent

    def moved(self, theta: Mapping[str, Tensor], move: Move) -> tuple[dict[str, Tensor], Tensor]:
        weights = "transition_weights" if self.recurrent else None
        return moved(theta, self.dynamics, self.emission, move, weights)

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        K = self.states
        start = torch.full((K,), self.concentration / K, dtype=torch.float64)
        rows = start + self.stickiness * torch.eye(K, dtype=torch.float64)
        moves = Factor(Dirichlet("transition"), {"log_probability": rows})
        return {
            "initial": Factor(Dirichlet("initial"), {"log_probability": start}),
            "transition": _sticks_prior(rows, self.latent, self.scale) if self.recurrent else moves,
            "dynamics": self.dynamics.prior(),
            "loading": self.emission.prior(),
        }

    def model(self, x: Float[Tensor, "N T D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then whole sequences with their states summed out, or held."""
        one = self.system.checked_inputs(x, u)
        s = self.statistics()
        initial = s["initial"]["log_probability"]
        with pyro.plate("sequence", total or len(x), subsample_size=len(x)):
            system = self.dynamics, self.emission, s["dynamics"], s["loading"], (x.shape[0], x.shape[1]), one
            if self.recurrent:
                pyro.sample("x", RecurrentLinear(initial, s["transition"], *system), obs=x)
            else:
                pyro.sample("x", SwitchingLinear(initial, s["transition"]["log_probability"], *system), obs=x)

    @property
    def starts(self) -> tuple[str, ...]:
        return ("smoothed", "components", "random")

    def guess(self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str) -> list[dict[str, Tensor]]:
        """Both kinds of states: ``h`` smoothed by a system of one state (``"smoothed"``, ``"random"``) or scores of the
        principal ``"components"`` of the filled data; and ``z`` of the best of some autoregressive hidden Markov models
        of these, or in ``"random"`` segments. Sticks are broken for states in the order in which ``h`` tells them best.
        """
        if start not in self.starts:
            raise DataError(f'SLDS: a start is "smoothed", "components" or "random", got {start!r}')
        count = sum(int(exists(x).sum()) for x in batches)
        if count < self.states:
            raise DataError(
                f"SLDS: x must have at least as many frames as states ({self.states}), got {count}; give fewer states"
            )
        if start == "components":
            h = [found["h"] for found in self.system.guess(batches, inputs, "pca")]
        else:
            h = self._smoothed(batches, inputs)
        there = [torch.where(exists(x)[..., None], own, torch.nan) for x, own in zip(batches, h, strict=True)]
        z = self._segments(there) if start == "random" else self._paths(there)
        if self.recurrent:
            place = torch.tensor(decision_list(there, z, self.states)).argsort()
            z = [place[path] for path in z]
        return [{"h": own, "z": path} for own, path in zip(h, z, strict=True)]

    def _smoothed(self, batches: Sequence[Tensor], inputs: Sequence[Inputs]) -> list[Float[Tensor, "N T L"]]:
        """Means of h under one state, in standard deviations around zero."""
        q, _ = ascended(self.system, batches, inputs, first_factors(self.system, batches, inputs, "pca"), START_STEPS)
        s = {name: factor.expected() for name, factor in q.items()}
        seen = [observed_given(self.system, s, x, u)["x"] for x, u in zip(batches, inputs, strict=True)]
        h = [found.distribution.latents(found.value).marginals["h"] for found in seen]
        rows = torch.cat([own[exists(x)] for x, own in zip(batches, h, strict=True)])
        mean, spread = rows.mean(0), rows.std(0, correction=0).clamp_min(1e-6)
        return [torch.nan_to_num((own - mean) / spread) for own in h]

    def _segments(self, h: Sequence[Float[Tensor, "N T L"]]) -> list[Int[Tensor, "N T"]]:
        chain = HMM(self.states, emission=Autoregressive(self.latent))
        return [found["z"] for found in chain.guess(h, [None] * len(h), "random")]

    def _paths(self, h: Sequence[Float[Tensor, "N T L"]]) -> list[Int[Tensor, "N T"]]:
        """States of the autoregressive hidden Markov model of ``h`` whose bound is highest after some updates.

        Two lags tell movements apart that noise hides from one; the prior guess of its noise is what one
        autoregression leaves of all frames.
        """
        h, left = _predictable(h)
        emission = Autoregressive(h[0].shape[-1], LAGS, noise=max(left, SMALLEST_NOISE))
        chain = HMM(self.states, emission=emission, stickiness=self.stickiness)
        return best_paths(chain, h, [None] * len(h), WAYS, START_STEPS)

    def check(self, x: Tensor) -> None:
        self.system.check(x)


def _covariance(rows: Float[Tensor, "n L"]) -> Float[Tensor, "L L"]:
    off = rows - rows.mean(0)
    return off.mT @ off / len(rows)


def _predictable(h: Sequence[Float[Tensor, "N T L"]]) -> tuple[list[Float[Tensor, "N T D"]], float]:
    """The directions of h that one autoregression of all frames says something about, and the mean variance it leaves.

    The others are noise, among which an autoregressive HMM loses the states; without them, directions are uncorrelated
    and of variance one.
    """
    L = h[0].shape[-1]
    windows = [torch.cat([own[:, lag : own.shape[1] - LAGS + lag] for lag in range(LAGS + 1)], -1) for own in h]
    rows = torch.cat([own.flatten(0, 1) for own in windows])
    rows = rows[~rows.isnan().any(-1)]
    if len(rows) <= (LAGS + 1) * L + 1:
        return list(h), 1.0
    known, target = torch.cat([rows[:, :-L], torch.ones_like(rows[:, :1])], -1), rows[:, -L:]
    left = target - known @ torch.linalg.pinv(known) @ target
    white = torch.linalg.inv(torch.linalg.cholesky(_covariance(target) + SMALLEST_NOISE**2 * torch.eye(L).to(target)))
    shares, turn = torch.linalg.eigh(white @ _covariance(left) @ white.mT)
    kept = max(1, int((shares < UNPREDICTABLE).sum()))
    if kept == L:
        return list(h), float(left.square().mean())
    return [own @ (turn[:, :kept].mT @ white).mT for own in h], float(shares[:kept].mean())


def _causes(states: Sequence[Any], latent: Sequence[Any]) -> list[str]:
    """What says where a system goes: the state that it is in, and its latent numbers."""
    return [*(f"state {k}" for k in states), *map(str, latent)]


def _sticks_prior(rows: Float[Tensor, "K K"], latent: int, scale: float) -> Factor:
    """Normal weights of sticks whose log odds from each state have the moments that Dirichlet counts give them."""
    own, behind = rows[:, :-1].mT, rows.flip(-1).cumsum(-1).flip(-1)[:, 1:].mT
    location = pad(own.digamma() - behind.digamma(), (0, latent))
    spread = pad((own.polygamma(1) + behind.polygamma(1)).sqrt(), (0, latent), value=scale)
    family = Normal("transition_weights")
    return Factor(family, family.natural(location=location, precision=torch.diag_embed(spread**-2)))
