r"""Input-output hidden Markov model; with input-free transitions the GLM-HMM.

.. math::
    \pi &\sim \mathrm{Dir}(\alpha / K), \quad P_k \sim \mathrm{Dir}(\alpha / K + \kappa e_k), \quad
    v_j \sim \mathcal N(0, s^2 I), \quad w_k \sim \mathcal N(0, s^2 I) \\
    z_1 &\sim \mathrm{Cat}(\pi), \quad P(z_t = j \mid z_{t-1} = i, u_t) \propto P_{ij}\, e^{v_j^\top u_t}, \quad
    x_t \sim p(x \mid w_{z_t}^\top [u_t; 1])

The observations are generalised linear in the inputs: normal, Bernoulli, categorical or Poisson. States are summed out
exactly, so the guide covers the parameters only. The priors are not conjugate: fit by `svi`, ``guide="map"`` included,
or `mcmc`. NaN in ``x`` is missing at random: its factor is one. Scale your inputs to about unit variance; the priors
assume it.

References: Bengio & Frasconi (1995); Calhoun, Pillow & Murthy (2019) and Ashwood et al. (2022) for the GLM-HMM.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.collapsed.driven_markov import DrivenMarkov
from ppgen.data.parts import Inputs
from ppgen.emissions.generalized_linear import GeneralizedLinear
from ppgen.emissions.units import input_cautions
from ppgen.errors import DataError
from ppgen.model import Model

__all__ = ["IOHMM"]


@final
class IOHMM(Model):
    r"""``IOHMM(3, inputs=2, features=1, emission="bernoulli")``: data ``x`` (N, T, D).

    The inputs ``u`` are (N, T, U), or (N, U) where they stay the same.

    Parameters
    ----------
    states : number of states K.
    inputs : number of inputs U.
    features : number of features D.
    emission : likelihood of a feature: ``"normal"``, ``"bernoulli"``, ``"categorical"`` or ``"poisson"``.
    categories : number of categories of a categorical feature, numbered from zero.
    transition_inputs : whether the inputs drive the transitions; False is the GLM-HMM. Or the numbers of those that do.
    emission_inputs : whether the inputs drive the observations, or the numbers of those that do.
    stickiness : extra prior count of staying in a state, :math:`\kappa`.
    concentration : total prior count of transitions from a state, :math:`\alpha`; twice the number of states if None.
    scale : prior standard deviation of the weights, :math:`s`.
    """

    exchangeable = ("state",)

    def __init__(
        self,
        states: int,
        inputs: int,
        features: int,
        *,
        emission: str = "normal",
        categories: int | None = None,
        transition_inputs: bool | Sequence[int] = True,
        emission_inputs: bool | Sequence[int] = True,
        stickiness: float = 0.0,
        concentration: float | None = None,
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        if not isinstance(states, int) or states < 1:
            raise DataError(f"IOHMM: states must be a whole number of at least 1, got {states!r}")
        if not isinstance(inputs, int) or inputs < 1:
            raise DataError(
                f"IOHMM: inputs must be a whole number of at least 1, got {inputs!r}; without any, take HMM"
            )
        self.states, self.inputs, self.features = states, inputs, features
        self.transition_inputs = _chosen("transition_inputs", transition_inputs, inputs)
        self.emission_inputs = _chosen("emission_inputs", emission_inputs, inputs)
        driven = len(self.emission_inputs)
        self.emission = GeneralizedLinear("IOHMM", features, driven, emission, categories, scale, "emission")
        self.stickiness = float(stickiness)
        self.concentration = float(2 * states if concentration is None else concentration)
        if not (0 < self.concentration < float("inf") and 0 <= self.stickiness < float("inf")):
            raise DataError(
                f"IOHMM: concentration must be positive and stickiness zero or more, got {self.concentration} and "
                f"{self.stickiness}"
            )

    @property
    def config(self) -> dict[str, Any]:
        own = ("states", "inputs", "features", "transition_inputs", "emission_inputs", "stickiness", "concentration")
        emission = {"emission": self.emission.likelihood, "categories": self.emission.categories}
        return {name: getattr(self, name) for name in own} | emission | {"scale": self.emission.scale}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        found = {"initial": ("state",), "transition": ("state", "next_state")}
        if self.transition_inputs:
            found["transition_weights"] = ("next_state", "transition_input")
        return found | {site: ("state", *axes) for site, axes in self.emission.dims.items()}

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        states = {"state": range(self.states), "next_state": range(self.states)}
        return {**states, **self.input_coords([f"u{i}" for i in range(self.inputs)])}

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        found = {"regressor": [*(str(names[i]) for i in self.emission_inputs), "one"]}
        if self.transition_inputs:
            found["transition_input"] = [str(names[i]) for i in self.transition_inputs]
        return found

    def model(self, x: Float[Tensor, "N T D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then whole sequences with their states summed out."""
        drives = self._checked_inputs(x, u)
        K, V = self.states, len(self.transition_inputs)
        even = torch.full((K,), self.concentration / K, dtype=torch.float64)
        rows = even + self.stickiness * torch.eye(K, dtype=torch.float64)
        initial = pyro.sample("initial", dist.Dirichlet(even))
        transition = pyro.sample("transition", dist.Dirichlet(rows).to_event(1))
        pull = torch.zeros(K, V, dtype=torch.float64)
        if V:
            pull = pyro.sample("transition_weights", dist.Normal(pull, self.emission.scale).to_event(2))
        theta = self.emission.draw(K, pyro.sample)
        one = torch.ones_like(drives[..., :1])
        seen = torch.cat([drives[..., list(self.emission_inputs)], one], -1)
        with pyro.plate("sequence", total or len(x), subsample_size=len(x)):
            states = DrivenMarkov(
                initial.log(), transition.log(), pull, self.emission, theta, seen,
                drives[..., list(self.transition_inputs)], x.shape[1],
            )  # fmt: skip
            pyro.sample("x", states, obs=x)

    def cautions(self, x: Tensor, u: Inputs) -> list[str]:
        """Warnings of inputs in units that the prior of their weights does not suit."""
        return input_cautions("IOHMM", x, u)

    def check(self, x: Tensor) -> None:
        if x.ndim != 3:
            raise DataError(f"IOHMM: x must have shape (N, T, D={self.features}), got {tuple(x.shape)}")
        self.emission.check(x, "N, T")

    def _checked_inputs(self, x: Tensor, u: Inputs) -> Float[Tensor, "N T2 U"]:
        if not (isinstance(u, Tensor) and u.shape[-1] == self.inputs):
            came = f"shape {tuple(u.shape)}" if isinstance(u, Tensor) else "none" if u is None else "several by name"
            raise DataError(f"IOHMM: u must have {self.inputs} inputs, as (N, T, U) or (N, U), got {came}")
        u = u.to(torch.float64)
        if u.ndim == 2:
            return u[:, None].expand(-1, x.shape[1], -1)
        if u.shape[1] < x.shape[1]:
            raise DataError(f"IOHMM: u must have a row for each of the {x.shape[1]} steps of x, got {u.shape[1]}")
        return u


def _chosen(name: str, which: bool | Sequence[int], inputs: int) -> tuple[int, ...]:
    """Numbers of the inputs that drive something."""
    if isinstance(which, bool):
        return tuple(range(inputs)) if which else ()
    found = tuple(int(i) for i in which)
    if (
        any(isinstance(i, bool) for i in which)
        or any(not 0 <= i < inputs for i in found)
        or len(set(found)) < len(found)
    ):
        raise DataError(f"IOHMM: {name} must be True, False or different numbers below {inputs}, got {which!r}")
    return found
