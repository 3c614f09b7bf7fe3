r"""Dirichlet over the jumps of a process that changes its state and never repeats it.

.. math:: J_{k \cdot} \text{ without } J_{kk} \sim \mathrm{Dir}(\alpha_k), \qquad J_{kk} = 0

The natural parameter is the matrix of concentrations, and the statistic that of log probabilities, each with zeros on
the diagonal: an exponential family of whole matrices whose diagonal says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, positive

from ppgen.distributions.jumps import Jumps, off_diagonal, with_diagonal
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Family, Natural, Sampler, require_positive

__all__ = ["JumpDirichlet"]

ROWS = Dirichlet("row")


@final
@dataclass(frozen=True)
class JumpDirichlet(Family):
    """Probabilities of jumps between K states, at least three: ``JumpDirichlet("transition")``."""

    site: str

    event_dims: ClassVar[Mapping[str, int]] = {"log_probability": 2}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the matrix of probabilities."""
        return (self.site,)

    def natural(self, *, concentration: Float[Tensor, "*batch K J"]) -> Natural:
        """Natural parameters for concentrations of the other K - 1 states, in their order."""
        return {"log_probability": with_diagonal(concentration)}

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``concentration`` (*batch, K, K - 1)."""
        return {"concentration": off_diagonal(eta["log_probability"])}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {"concentration": independent(positive, 2)}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Sum over the rows of the log multivariate beta function."""
        return ROWS.log_normalizer(_rows(eta)).sum(-1)

    def expected(self, eta: Natural) -> Natural:
        """E[log J], zero on the diagonal."""
        return {"log_probability": with_diagonal(ROWS.expected(_rows(eta))["log_probability"])}

    def kl(self, eta_q: Natural, eta_p: Natural) -> Float[Tensor, "*batch"]:
        """Kullback-Leibler divergence KL(q || p) in nats, row by row."""
        return ROWS.kl(_rows(eta_q), _rows(eta_p)).sum(-1)

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """Log J, zero on the diagonal."""
        return {"log_probability": with_diagonal(off_diagonal(theta[self.site]).log())}

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the matrix."""
        return {self.site: sample(self.site, Jumps(eta["log_probability"]).to_event(self.batch_dims(eta)))}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "concentration", off_diagonal(eta["log_probability"]))


def _rows(eta: Natural) -> Natural:
    return {"log_probability": off_diagonal(eta["log_probability"])}
