r"""Data and what is missing of them, modelled together: the mask depends on the values that it hides.

.. math:: x_n \sim p(x), \qquad m_{nd} \sim \mathrm{Bern}\big(\sigma(w_d^\top \phi_{nd})\big), \qquad
    \phi_{nd} = [x_{nd}; 1] \;\text{(self-masking)} \quad\text{or}\quad [x_n; 1] \;\text{(logistic)}

where :math:`x_{nd}` is seen if :math:`m_{nd} = 0`. There is no closed form, so everything is drawn: latents given whole
data, missing entries from the model given the latents, each chosen among a few by how well it explains the mask
(a particle Gibbs step, which leaves the posterior as it is), and the weights with Pólya-gamma numbers, given which they
are normal.

References: Ipsen, Mattei & Frellsen (2021), "not-MIWAE: deep generative modelling with missing not at random data";
Andrieu, Doucet & Holenstein (2010), §2.4.1, iterated sampling importance resampling; Polson, Scott & Windle (2013).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from ppgen.collapsed.base import Collapsed, Latents
from ppgen.collapsed.estimated import wanted
from ppgen.collapsed.hidden_markov import HiddenMarkov
from ppgen.collapsed.semi_markov import SemiMarkov
from ppgen.data.arrays import exists
from ppgen.distributions.polya_gamma import polya_gamma
from ppgen.distributions.shape import Shape
from ppgen.errors import DataError, FitError
from ppgen.families.family import Natural

__all__ = ["NotAtRandom"]

CANDIDATES = 8  # values that a missing entry is chosen among, beside the present one
SETTLED = 20  # sweeps behind a draw that starts from data missing at random
AVERAGED = 10  # completed data over which latents are averaged
ESTIMATED = (
    "unbiased estimates of p(x, mask | theta), by weighted values of what is missing; their logarithms differ from "
    "call to call where much is missing"
)
COMPLETED, HELP = "completed", "polya_gamma"  # names of the completed data and of the auxiliary numbers among latents


@final
@dataclass(frozen=True)
class AveragedLatents:
    """Posterior of the latents of a model, averaged over completed data."""

    each: Sequence[Latents]

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self.each[0].dims

    @property
    def marginals(self) -> dict[str, Tensor]:
        """Averages of the probabilities and means."""
        found = [one.marginals for one in self.each]
        return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}

    @property
    def mode(self) -> dict[str, Tensor]:
        """The most probable values under the averaged probabilities; -1 past the end of a sequence."""
        found = self.marginals
        best = {name: found[name.removesuffix("_mode")] for name in self.each[0].mode}
        return {name: torch.where(p.isnan().any(-1), -1, p.argmax(-1)) for name, p in best.items()}

    def sample(self) -> dict[str, Tensor]:
        """One joint draw, given the last of the completed data."""
        return self.each[-1].sample()


@final
class NotAtRandom(Collapsed):
    """Distribution over ``x`` (N, D) or (N, T, D) together with which of its entries are NaN.

    Parameters
    ----------
    inner : distribution of whole data.
    weights : statistics of the mechanism's weights, (D, 2) or (D, D + 1), the last for a one.
    own : whether each entry is hidden by its own value alone (self-masking).
    """

    def __init__(self, inner: Collapsed, weights: Natural, *, own: bool) -> None:
        self.inner, self.weights, self.own = inner, weights, own
        chain = inner.inner if isinstance(inner, SemiMarkov) else inner
        if isinstance(chain, HiddenMarkov) and not chain.emission.closed:
            raise DataError(
                "MissingMechanism: missing entries must not depend on each other given the states, as those of "
                f"{type(chain.emission).__name__} do; take an emission such as Gaussian, or an SLDS"
            )
        super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """That of whole data."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Shape, _instance: TorchDistribution | None = None) -> "NotAtRandom":
        return NotAtRandom(self.inner.expand(batch_shape), self.weights, own=self.own)

    def exact(self, x: Tensor) -> bool:
        """Never: latents are drawn given completed data."""
        return False

    def energy(self, x: Tensor, m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        raise FitError(
            "MissingMechanism: has no density in closed form, so variational Bayes, SVI and Hamiltonian samplers "
            "cannot fit it; use mcmc.fit(model, x), which takes a Gibbs sampler"
        )

    def log_prob(self, x: Tensor) -> Float[Tensor, " N"]:
        """Inside `estimates` an estimate of the log density of each row and its mask; else there is none."""
        said = wanted()
        if said is None:
            return self.energy(x, {})
        said.words = ESTIMATED
        with torch.no_grad():
            return self.inner.log_prob(x) + self._log_mask_given(x)

    def joint(self, x: Tensor, values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log joint density of completed data, its latents and the mask; of guessed latents alone without the mask."""
        if HELP not in values:
            return self.inner.joint(x, values)
        features, hidden, omega = self._features(values[COMPLETED]), values["hidden"], values[HELP]
        there = values["there"][..., None].to(omega)
        log_odds = (features * self.weights["linear"]).sum(-1)
        squares = torch.einsum("...dr,...ds,drs->...d", features, features, self.weights["quadratic"])
        mask = there * ((hidden.to(omega) - 0.5) * log_odds + omega * squares)
        return self.inner.joint(values[COMPLETED], self._latents(values)) + mask.flatten(1).sum(-1)

    def draw(self, x: Tensor) -> dict[str, Tensor]:
        """One joint draw of latents, completed data and auxiliary numbers, after sweeps from data missing at random."""
        return self._helped(x, self._settled(x))

    def sweep(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw the latents, each missing entry and the auxiliary numbers once, given the others."""
        return self._helped(x, self._completed(x, values))

    def _settled(self, x: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {COMPLETED: self.inner.impute(x)}
        for _ in range(SETTLED):
            values = self._completed(x, values)
        return values

    def _completed(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents and each missing entry drawn once, given the others."""
        with torch.no_grad():
            whole, before = values[COMPLETED], self._latents(values)
            free = not before or self.inner.exact(whole)
            latents = self.inner.draw(whole) if free else self.inner.sweep(whole, before)
            return {**latents, COMPLETED: self._chosen(x, whole, latents)}

    def _helped(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With auxiliary numbers, given which the weights are normal, and the mask."""
        omega = polya_gamma(self._log_odds(values[COMPLETED]))
        return {**values, HELP: omega, "hidden": torch.isnan(x), "there": _there(x)}

    def fill(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """``x`` with its NaN entries as they were drawn; trailing NaN stays."""
        return values[COMPLETED]

    def latents(self, x: Tensor) -> AveragedLatents:
        """Posterior of the latents given ``x`` and its mask."""
        values, found = self._settled(x), []
        for _ in range(AVERAGED):
            found.append(self.inner.latents(values[COMPLETED]))
            values = self._completed(x, values)
        return AveragedLatents(found)

    def impute(self, x: Tensor) -> Tensor:
        """``x`` with its NaN entries replaced by one joint draw, given that they are missing; trailing NaN stays."""
        return self._settled(x)[COMPLETED] if torch.isnan(x).any() else x.clone()

    def forecast(self, x: Tensor, horizon: int) -> Tensor:
        """Draw the ``horizon`` steps behind the end of each sequence, whole."""
        found: Tensor = self.inner.forecast(self.impute(x), horizon)
        return found

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Replicated data, NaN where the mechanism hides it."""
        whole = self.inner.sample(sample_shape)
        return torch.where(torch.rand_like(whole) < self._log_odds(whole).sigmoid(), torch.nan, whole)

    def _latents(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in values.items() if name not in (COMPLETED, HELP, "hidden", "there")}

    def _features(self, whole: Tensor) -> Float[Tensor, "... D R"]:
        """Regressors of the mask of each entry; those that do not exist are zero."""
        whole = torch.nan_to_num(whole)
        if self.own:
            return torch.stack([whole, torch.ones_like(whole)], -1)
        return pad(whole, (0, 1), value=1.0)[..., None, :].expand(*whole.shape, -1)

    def _log_odds(self, whole: Tensor) -> Float[Tensor, "... D"]:
        """Log odds that each entry is hidden."""
        return (self._features(whole) * self.weights["linear"]).sum(-1)

    def _log_mask(self, whole: Tensor, hidden: Bool[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Log probability of what is hidden and what is not, entry by entry."""
        odds = self._log_odds(whole)
        return logsigmoid(torch.where(hidden, odds, -odds))

    def _chosen(self, x: Tensor, whole: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """Completed data, each missing entry chosen among draws of the model and its present value."""
        missing = torch.isnan(x)
        for group in self._groups(missing & _there(x)[..., None]):
            gap = missing & group
            holes = torch.where(gap, torch.nan, whole)
            values = torch.stack([whole, *(self.inner.fill(holes, latents) for _ in range(CANDIDATES))])
            whole = torch.where(gap, self._choose(values, missing)[0], whole)
        return whole

    def _groups(self, hidden: Bool[Tensor, "... D"]) -> list[Bool[Tensor, " D"]]:
        """Features that can be chosen at once: all of them where neither the model nor the mask ties them together."""
        some = hidden.flatten(0, -2).any(0)
        if self.own and self.inner.apart:
            return [some]
        each = torch.eye(len(some), dtype=torch.bool, device=some.device)
        return [each[d] for d in some.nonzero()[:, 0].tolist()]

    def _choose(self, values: Float[Tensor, "n ... D"], hidden: Bool[Tensor, "... D"]) -> tuple[Tensor, Tensor]:
        """One of n ``values`` for each entry, by the probability of the mask, and the log of the mean of these.

        Entries are chosen each by itself; where the mask ties those of a row together, all of a row alike.
        """
        score = self._log_mask(values, hidden)
        score = score if self.own else score.sum(-1, keepdim=True).expand_as(score)
        noise = -torch.empty_like(score).exponential_().log()
        best = (score + (noise if self.own else noise[..., :1])).argmax(0, keepdim=True)
        return values.gather(0, best)[0], score.logsumexp(0) - math.log(len(values))

    def _log_mask_given(self, x: Tensor) -> Float[Tensor, " N"]:
        """An unbiased estimate, in the log, of the probability of the mask given what is seen.

        Latents are drawn given what is seen, and hidden entries given these one feature after the other, each among
        some, so that few draws are in vain (sequential importance resampling within a row or step).
        """
        missing, there = torch.isnan(x), _there(x)
        hidden = missing & there[..., None]
        latents, partly, total = self.inner.draw(x), x, x.new_zeros(x.shape, dtype=torch.float64)
        for group in self._groups(hidden):
            gap = hidden & group
            values = torch.stack([self.inner.fill(partly, latents) for _ in range(CANDIDATES)])
            best, log_mean = self._choose(values, missing) if self.own else (values[0], total)
            total = total + torch.where(gap, log_mean, 0.0)
            partly = torch.where(gap, best, partly)
        decided = hidden if self.own else torch.zeros_like(hidden)
        total = total + torch.where(decided | ~there[..., None], 0.0, self._log_mask(partly, missing))
        return total.flatten(1).sum(-1)


def _there(x: Tensor) -> Bool[Tensor, "..."]:
    """Steps within their sequence, and every row: that nothing of one was seen says something too."""
    return exists(x) if x.ndim == 3 else torch.ones_like(x[..., 0], dtype=torch.bool)
