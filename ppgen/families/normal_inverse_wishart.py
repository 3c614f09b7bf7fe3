r"""Normal-inverse-Wishart over the mean and precision of a Gaussian.

.. math:: \Lambda \sim \mathcal W(\nu, \Psi^{-1}), \qquad \mu \mid \Lambda \sim \mathcal N(m, (\kappa\Lambda)^{-1})

With base measure :math:`|\Lambda|^{-D/2}` the natural parameters are
:math:`\eta = (\Psi + \kappa m m', \; \kappa m, \; \kappa, \; \nu)`, to which an observation adds
:math:`(x x', \; x, \; 1, \; 1)`. It is the regression on a constant: `MatrixNormalInverseWishart` with R = 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor
from torch.distributions.constraints import Constraint, greater_than, positive, positive_definite, real_vector

from ppgen.distributions.matrix_normal import PrecisionNormal
from ppgen.distributions.wishart import WishartCholesky
from ppgen.families.family import Family, Natural, Sampler, as_tensors, common_batch, require_positive
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart, check_regression, factorise

__all__ = ["NormalInverseWishart"]

REGRESSION = MatrixNormalInverseWishart()


@final
@dataclass(frozen=True)
class NormalInverseWishart(Family):
    """Mean (D,) and lower Cholesky factor (D, D) of the precision of a Gaussian."""

    location: str = "location"
    precision_cholesky: str = "precision_cholesky"

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 2, "linear": 1, "quadratic": 0, "log_det": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the precision's factor first, then the mean given it."""
        return (self.precision_cholesky, self.location)

    def natural(
        self,
        *,
        location: Float[Tensor, "*#batch D"],
        strength: Tensor | float,
        scale: Float[Tensor, "*#batch D D"],
        degrees: Tensor | float,
    ) -> Natural:
        """Natural parameters of W(degrees, scale⁻¹) times N(location, (strength Λ)⁻¹)."""
        m, kappa, psi, nu = as_tensors(location, strength, scale, degrees)
        linear = kappa[..., None] * m
        precision = psi + linear[..., :, None] * m[..., None, :]
        values = {"precision": precision, "linear": linear, "quadratic": kappa, "log_det": nu}
        return common_batch(values, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location`` (D,), ``strength`` (), ``scale`` (D, D) and ``degrees`` (), batch dims first."""
        named = REGRESSION.named(_as_regression(eta))
        return {
            "location": named["location"][..., 0],
            "strength": eta["quadratic"],
            "scale": named["scale"],
            "degrees": eta["log_det"],
        }

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {
            "location": real_vector,
            "strength": positive,
            "scale": positive_definite,
            "degrees": greater_than(eta["linear"].shape[-1] - 1.0),
        }

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser, that of the regression on a constant."""
        return REGRESSION.log_normalizer(_as_regression(eta))

    def expected(self, eta: Natural) -> Natural:
        """Expectations of -Λ/2, Λμ, -μ'Λμ/2 and ½ log|Λ|."""
        return _from_regression(REGRESSION.expected(_as_regression(eta)))

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """-Λ/2, Λμ, -μ'Λμ/2 and ½ log|Λ|."""
        coefficients = theta[self.location][..., None]
        precision_cholesky = theta[self.precision_cholesky]
        lifted = {"coefficients": coefficients, "precision_cholesky": precision_cholesky}
        return _from_regression(REGRESSION.statistic(lifted))

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the precision's factor, then the mean given it."""
        parts, events = factorise(_as_regression(eta)), self.batch_dims(eta)
        wishart = WishartCholesky(eta["log_det"], parts.scale_cholesky)
        factor = sample(self.precision_cholesky, wishart.to_event(events))
        normal = PrecisionNormal(parts.location()[..., 0], factor, eta["quadratic"])
        return {self.precision_cholesky: factor, self.location: sample(self.location, normal.to_event(events))}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "strength", eta["quadratic"])
        check_regression(self._name, "strength", _as_regression(eta))


def _as_regression(eta: Natural) -> Natural:
    """View μ as the coefficients (D, 1) of a constant regressor."""
    return {**eta, "linear": eta["linear"][..., None], "quadratic": eta["quadratic"][..., None, None]}


def _from_regression(eta: Natural) -> Natural:
    return {**eta, "linear": eta["linear"][..., 0], "quadratic": eta["quadratic"][..., 0, 0]}
