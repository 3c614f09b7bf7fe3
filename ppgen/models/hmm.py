r"""Hidden Markov model with conjugate emissions; sticky, and with a hierarchical Dirichlet process prior on request.

.. math::
    \pi &\sim \mathrm{Dir}(\alpha / K), \quad A_k \sim \mathrm{Dir}(\alpha \beta + \kappa e_k), \quad
    \theta_k \sim \text{the emission's prior} \\
    z_1 &\sim \mathrm{Cat}(\pi), \quad z_t \sim \mathrm{Cat}(A_{z_{t-1}}), \quad x_t \sim p(\cdot \mid \theta_{z_t})

with :math:`\beta = (1/K, \dots, 1/K)`, or :math:`\beta \sim \mathrm{Dir}(\gamma / K)` for ``hierarchical=True``: the
weak limit of the sticky HDP-HMM, in which unused states empty themselves. :math:`\beta` is then a point estimate in
variational Bayes and SVI, and a parameter in MCMC.

With ``durations`` the model is semi-Markov: a state lasts as many steps as its duration says and then jumps to another,

.. math::
    d_i \sim p(d \mid z_i), \quad z_{i+1} \sim \mathrm{Cat}(J_{z_i}), \quad
    J_k \sim \mathrm{Dir}(\alpha \beta) \text{ over the states but } k

for the i-th segment (:mod:`ppgen.durations`). A sequence begins with a segment, and its end cuts the last.

The first state emits the first observation. States are summed out exactly, so the guide covers the parameters only.
NaN in ``x`` is missing at random: its factor is one. Scale your features to about unit variance; the priors assume it,
and a start refuses data that they would outweigh.

References: Rabiner (1989); Fox et al. (2011) for :math:`\kappa` and the weak limit; Johnson & Willsky (2014) for the
point estimate; Yu (2010) and Johnson & Willsky (2013) for durations.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppgen.collapsed.hidden_markov import HiddenMarkov
from ppgen.collapsed.semi_markov import SemiMarkov
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.data.parts import Inputs
from ppgen.distributions.jumps import off_diagonal, with_diagonal
from ppgen.durations import Durations, PoissonDurations
from ppgen.durations.named import chosen_durations
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.driven import DrivenGaussian
from ppgen.emissions.emission import Emission
from ppgen.emissions.gaussian import Gaussian
from ppgen.emissions.start_paths import cluster_paths, random_segments, window_paths
from ppgen.emissions.units import check_units
from ppgen.errors import DataError, in_name_of
from ppgen.expecting import best_paths
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Natural
from ppgen.families.jumps import JumpDirichlet
from ppgen.model import Conjugate, Factor

__all__ = ["HMM"]

LOG_SCALE_SD = 2.0  # of a learned scale of the prior, around its default
TRIED, START_STEPS = ("kmeans", *["random"] * 8), 10  # starts of regressions, and updates before they are compared
SMALLEST_CONCENTRATION = 1e-4  # keeps the expected log-probability of a move to an emptied state representable


@final
class HMM(Conjugate):
    r"""``HMM(states=3, features=2)``: data ``x`` of shape (N, T, D).

    Parameters
    ----------
    states : number of states K. Names for them may be given too, but which state gets which is arbitrary: see
        ``Fit.order`` and ``Fit.rename``.
    features : number of features D of a full-covariance Gaussian emission; or give ``emission``.
    emission : any :class:`~ppgen.emissions.emission.Emission`.
    stickiness : extra prior count of staying in a state, :math:`\kappa`.
    concentration : total prior count of leaving to the other states, :math:`\alpha`.
    hierarchical : learn how much each state is used (weak-limit HDP).
    learn_prior : learn the scales of the emission's prior (its ``prior_scales``) from the data: empirical Bayes.
    usage_concentration : :math:`\gamma`; small values empty more states.
    inputs : number of inputs U that the means of a Gaussian emission are linear in (`DrivenGaussian` has options).
        ``u`` is then (N, T, U), or (N, U) where inputs stay the same. For other likelihoods, and inputs that drive the
        transitions, see :class:`~ppgen.models.iohmm.IOHMM`.
    durations : ``"negative_binomial"`` or ``"poisson"``, or one of :mod:`ppgen.durations` with its options:
        how many steps a state lasts. None: until it is left, which is geometric. The time of a fit grows with the
        square of the number of phases, 5 by default, or steps of the longest duration, 50.
    """

    exchangeable = ("state",)

    def __init__(
        self,
        states: SupportsIndex | Sequence[str],
        features: int | None = None,
        *,
        emission: Emission | None = None,
        stickiness: float = 0.0,
        concentration: float | None = None,
        hierarchical: bool = False,
        learn_prior: bool = False,
        usage_concentration: float = 1.0,
        durations: str | Durations | None = None,
        inputs: int = 0,
    ) -> None:
        super().__init__()
        self.states, self.state_names = _number_and_names(states)
        if (features is None) == (emission is None):
            raise DataError("HMM: give either features (for a Gaussian emission) or emission, one of the two")
        self.emission: Emission = emission or _gaussian(features or 0, inputs)
        self.inputs = self.emission.inputs if isinstance(self.emission, DrivenGaussian) else 0
        if inputs != self.inputs:
            raise DataError(
                f"HMM: inputs must be those of a DrivenGaussian emission, {self.inputs}, got {inputs}; give features "
                "instead of emission, or leave inputs out"
            )
        self.stickiness, self.hierarchical, self.learn_prior = float(stickiness), hierarchical, learn_prior
        self.concentration = float(self.states if concentration is None else concentration)
        self.usage_concentration = float(usage_concentration)
        for name in ("concentration", "usage_concentration"):
            if not 0 < getattr(self, name) < float("inf"):
                raise DataError(f"HMM: {name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.stickiness < float("inf"):
            raise DataError(f"HMM: stickiness must be zero or more, got {stickiness}")
        self.durations = chosen_durations("HMM", durations, self.states, self.stickiness)
        if learn_prior:
            self.log_scales = nn.Parameter(self._default_log_scales())
        if hierarchical:
            self.usage_logits = nn.Parameter(torch.zeros(self.states, dtype=torch.float64))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "states": self.state_names or self.states,
            "emission": self.emission,
            "stickiness": self.stickiness,
            "concentration": self.concentration,
            "hierarchical": self.hierarchical,
            "learn_prior": self.learn_prior,
            "usage_concentration": self.usage_concentration,
            "durations": self.durations,
            "inputs": self.inputs,
        }

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        emission = {site: ("state", *axes) for site, axes in self.emission.dims.items()}
        usage = {"usage": ("state",)} if self.hierarchical else {}
        jumps = {"transition": ("state", "next_state")} if self._moves else {}
        durations = self.durations.dims if self.durations else {}
        return {**usage, "initial": ("state",), **jumps, **durations, **emission}

    @property
    def _moves(self) -> bool:
        """Whether moves are random: with durations, two states take turns."""
        return self.durations is None or self.states > 2

    @property
    def coords(self) -> dict[str, Sequence[Any]]:
        names: Sequence[Any] = self.state_names or range(self.states)
        moves = {"next_state": names} if self._moves else {}
        driven = self.input_coords([f"u{i}" for i in range(self.inputs)])
        return {"state": names, **moves, **(self.durations.coords if self.durations else {}), **driven}

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        return {"regressor": [*map(str, names), "one"]} if self.inputs else {}

    @property
    def usage(self) -> Float[Tensor, " K"]:
        """Point estimate of how much each state is used."""
        if self.hierarchical:
            return self.usage_logits.softmax(-1)
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)

    @property
    def points(self) -> dict[str, Tensor]:
        return {"usage": self.usage} if self.hierarchical else {}

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        K, usage = self.states, points.get("usage", self.usage)
        rows = self.concentration * usage + self.stickiness * torch.eye(K).to(usage)
        start = torch.full_like(usage, self.concentration / K)
        emission = {name: value.to(usage.device) for name, value in self.emission.prior(K, **self.scales).items()}
        rows = rows.clamp_min(SMALLEST_CONCENTRATION)
        moves = Factor(Dirichlet("transition"), {"log_probability": rows})
        if self.durations is not None:
            moves = Factor(JumpDirichlet("transition"), {"log_probability": with_diagonal(off_diagonal(rows))})
        return {
            "initial": Factor(Dirichlet("initial"), {"log_probability": start}),
            **({"transition": moves} if self._moves else {}),
            **(self.durations.prior(K) if self.durations else {}),
            "emission": Factor(self.emission.family, emission),
        }

    def model(self, x: Float[Tensor, "N T D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then whole sequences with their states summed out."""
        emission = self._emission_at(x, u)
        usage = {"usage": pyro.sample("usage", dist.Dirichlet(self._usage_prior()))} if self.hierarchical else {}
        s = self.statistics(**usage)
        with pyro.plate("sequence", total or len(x), subsample_size=len(x)):
            pyro.sample("x", self._summed_out(s, emission, (x.shape[0], x.shape[1])), obs=x)

    def _summed_out(
        self, s: Mapping[str, Natural], emission: Emission, shape: tuple[int, int]
    ) -> HiddenMarkov | SemiMarkov:
        """Whole sequences, their states summed out."""
        initial = s["initial"]["log_probability"]
        moves = s["transition"]["log_probability"] if self._moves else torch.zeros(2, 2).to(initial)
        if self.durations is None:
            return HiddenMarkov(initial, moves, emission, s["emission"], shape)
        return SemiMarkov(initial, moves, self.durations, s, emission, s["emission"], shape)

    def _emission_at(self, x: Tensor, u: Inputs) -> Emission:
        """The emission, with the inputs of every step where there are any."""
        if not isinstance(self.emission, DrivenGaussian):
            if u is not None:
                raise DataError(
                    "HMM: takes no inputs u, got some; leave them out (they would be ignored), or give inputs=their "
                    "number"
                )
            return self.emission
        if not (isinstance(u, Tensor) and u.shape[-1] == self.inputs):
            came = f"shape {tuple(u.shape)}" if isinstance(u, Tensor) else "none" if u is None else "several by name"
            raise DataError(f"HMM: u must have {self.inputs} inputs, as (N, T, U) or (N, U), got {came}")
        return self.emission.at(u)

    @property
    def starts(self) -> tuple[str, ...]:
        if self.inputs:
            return ("regressions", "kmeans", "random")
        if isinstance(self.emission, Autoregressive):
            return ("kmeans", "segments-16", "segments-32", "random", "segments-8", "segments-64")
        return ("kmeans", "random", "segments-16", "segments-8")

    def guess(
        self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str
    ) -> list[dict[str, Int[Tensor, "N T"]]]:
        """Paths ``z`` by ``"kmeans"`` of the steps, ``"random"`` segments, or ``"segments-16"``: clustered windows of
        16 steps. With inputs, ``"regressions"`` is the best of some random segments after some updates.
        """
        if start == "regressions" and self.inputs:
            return [{"z": z} for z in best_paths(self, batches, inputs, TRIED, START_STEPS)]
        return [{"z": z} for z in self._paths(batches, start)]

    def _paths(self, batches: Sequence[Tensor], method: str) -> list[Int[Tensor, "N T"]]:
        frames = sum(int(sequence_lengths(x).sum()) for x in batches)
        if frames < self.states:
            raise DataError(
                f"HMM: x must have at least as many frames as states ({self.states}), got {frames}; ask for fewer"
            )
        if not self.learn_prior:
            check_units("HMM", self.emission, batches, self.states)
        if method == "random":
            return [random_segments(x.shape[:2], self.states) for x in batches]
        if method == "kmeans":
            return cluster_paths(self.emission, batches, self.states)
        kind, _, length = method.partition("-")
        if kind != "segments" or not length.isdigit() or int(length) < 1:
            raise DataError(f'HMM: a start is "kmeans", "random" or "segments-<steps>", got {method!r}')
        return window_paths(self.emission, batches, self.states, int(length))

    @property
    def scales(self) -> dict[str, Tensor]:
        """Point estimates of the scales of the emission's prior; empty where they are given."""
        return dict(zip(self.emission.prior_scales, self.log_scales.exp(), strict=True)) if self.learn_prior else {}

    def _default_log_scales(self) -> Tensor:
        scales = [getattr(self.emission, name) for name in self.emission.prior_scales]
        return torch.tensor(scales, dtype=torch.float64).log()

    def log_hyperprior(self) -> Tensor:
        """Log prior density of the point estimates, on the unconstrained scale."""
        total = torch.zeros((), dtype=torch.float64)
        if self.learn_prior:
            total = total + dist.Normal(self._default_log_scales(), LOG_SCALE_SD).log_prob(self.log_scales).sum()
        if not self.hierarchical:
            return total
        prior = {"log_probability": self._usage_prior()}  # the family's base measure is that of the unconstrained scale
        log_usage = {"log_probability": self.usage_logits.log_softmax(-1)}
        family = Dirichlet("usage")
        return total + family.inner(prior, log_usage) - family.log_normalizer(prior)

    def _usage_prior(self) -> Tensor:
        return torch.full((self.states,), self.usage_concentration / self.states, dtype=torch.float64)

    def check(self, x: Tensor) -> None:
        with in_name_of("HMM"):
            self.emission.check(x)

    def cautions(self, x: Tensor, u: Inputs) -> list[str]:
        """A warning of durations that no sequence is long enough to show."""
        steps = int(sequence_lengths(x).max()) if len(x) else 0
        if not isinstance(self.durations, PoissonDurations) or self.durations.longest <= max(steps, 2):
            return []
        return [
            f"HMM: no sequence is longer than {steps} steps, so durations of up to {self.durations.longest} steps take "
            f"time and change nothing; give durations=PoissonDurations({steps})"
        ]

    def remarks(self, theta: Mapping[str, Tensor]) -> list[str]:
        """A warning of states whose durations the longest one cuts off."""
        if not isinstance(self.durations, PoissonDurations):
            return []
        longest = self.durations.longest
        lost = self.durations.tail(theta, longest).mean(0)
        return [
            f"HMM: state {k} would last more than {longest} steps, the longest duration, with probability "
            f"{float(lost[k]):.2g}, which is left out; give durations=PoissonDurations({2 * longest})"
            for k in (lost > self.durations.LOST).nonzero()[:, 0].tolist()
        ]

    def renumbered(self, axis: str, order: Int[Tensor, " K"]) -> "HMM":
        """A copy whose learnt usage follows ``order``."""
        model = HMM(**self.config)
        state = self.state_dict()
        if self.hierarchical:
            state["usage_logits"] = state["usage_logits"][order]
        model.load_state_dict(state)
        return model


def _gaussian(features: int, inputs: int) -> Emission:
    return DrivenGaussian(features, inputs) if inputs else Gaussian(features)


def _number_and_names(states: SupportsIndex | Sequence[str]) -> tuple[int, list[str] | None]:
    """The number of states, and their names if they were given."""
    if isinstance(states, str) or not isinstance(states, SupportsIndex | Sequence):
        raise DataError(f"HMM: states must be a whole number or a list of names, got {states!r}")
    names = None if isinstance(states, SupportsIndex) else [str(name) for name in states]
    number = operator.index(states) if isinstance(states, SupportsIndex) else len(states)
    if number < 1:
        raise DataError(f"HMM: states must be at least 1, got {states!r}")
    if names is not None and len(set(names)) < number:
        raise DataError(f"HMM: names of states must differ, got {names}")
    return number, names
