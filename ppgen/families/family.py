r"""The contract of a conjugate exponential family.

A family is a density over parameters :math:`\theta`,

.. math:: p(\theta \mid \eta) = h(\theta) \exp(\langle \eta, t(\theta) \rangle - A(\eta)),

with natural parameters :math:`\eta`, sufficient statistics :math:`t` and log-normaliser :math:`A`. The base measure
:math:`h` does not depend on :math:`\eta` and is chosen so that one observation adds its own statistics to
:math:`\eta` and nothing else: a conjugate update is a sum of dicts.

Natural parameters, statistics, expected statistics and gradients share one form, `Natural`. A matrix statistic is
symmetric and its inner product runs over all entries: gradients are those of the full matrix, without factors of two.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppgen.errors import DataError

__all__ = ["Factor", "Family", "Natural", "Sampler"]

Natural = dict[str, Tensor]
"""Statistic -> tensor, batch dimensions first: natural parameters, statistics, their expectations, gradients."""

Sampler = Callable[[str, TorchDistributionMixin], Tensor]
"""What `Family.draw` calls for each site: ``pyro.sample``, or any ``(site, distribution) -> value``."""


class Family(ABC):
    """A conjugate exponential family: everything inference needs to know about one group of parameters.

    Subclasses are final. They name their statistics in ``event_dims`` and the parameters they draw in ``sites``.
    """

    event_dims: ClassVar[Mapping[str, int]]
    """Statistic -> the number of its trailing event dimensions."""

    @property
    @abstractmethod
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters, in the order they are drawn."""

    @abstractmethod
    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser A(eta), whose gradient is `expected`; NaN where ``eta`` is improper."""

    @abstractmethod
    def expected(self, eta: Natural) -> Natural:
        """Expected statistics E[t(theta)] under ``eta``, in closed form."""

    @abstractmethod
    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """Sufficient statistics t(theta) of the parameters named in ``sites``."""

    @abstractmethod
    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Sample each site in order, every batch dimension declared an event, so that no plate is needed.

        One method is the Pyro prior, the Pyro guide and the posterior sampler.
        """

    @abstractmethod
    def named(self, eta: Natural) -> dict[str, Tensor]:
        """Textbook parameters of ``eta``."""

    @abstractmethod
    def natural(self, *args: Any, **named: Any) -> Natural:  # noqa: ANN401 - each family spells out its own names
        """Natural parameters from the textbook ones: the inverse of `named`."""

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> what it is constrained to, for factors that a gradient trains; none by default."""
        return {}

    @abstractmethod
    def _check_proper(self, eta: Natural) -> None:
        """Raise where ``eta``, known to be complete and finite, does not give a normalisable density."""

    def batch_dims(self, eta: Natural) -> int:
        """Count the batch dimensions of ``eta``."""
        return max(eta[name].ndim - dims for name, dims in self.event_dims.items())

    def inner(self, a: Natural, b: Natural) -> Float[Tensor, "*batch"]:
        """Inner product over all entries of all statistics, one number per batch element."""
        products = [_sum_events(a[name] * b[name], dims) for name, dims in self.event_dims.items()]
        return torch.stack(torch.broadcast_tensors(*products)).sum(0)

    def kl(self, eta_q: Natural, eta_p: Natural) -> Float[Tensor, "*batch"]:
        """Kullback-Leibler divergence KL(q || p) in nats."""
        difference = {name: eta_q[name] - eta_p[name] for name in self.event_dims}
        linear = self.inner(difference, self.expected(eta_q))
        return linear - self.log_normalizer(eta_q) + self.log_normalizer(eta_p)

    def sample(self, eta: Natural, n: int) -> dict[str, Tensor]:
        """Draw ``n`` times, site -> (n, *batch, *event), from torch's global generator and without gradient."""

        def draw(_site: str, distribution: TorchDistributionMixin) -> Tensor:
            # A site that depends on an earlier one has that one's n draws as its batch already.
            return distribution.sample(torch.Size() if distribution.batch_shape else torch.Size((n,)))

        with torch.no_grad():
            return self.draw(eta, draw)

    def check(self, eta: Natural) -> None:
        """Raise `DataError`, in words, unless ``eta`` is complete, finite and proper."""
        if set(eta) != set(self.event_dims):
            raise DataError(f"{self._name}: statistics must be {sorted(self.event_dims)}, got {sorted(eta)}")
        for name, dims in self.event_dims.items():
            if eta[name].ndim < dims:
                raise DataError(
                    f"{self._name}: {name} must have {dims} event dims or more, got shape {tuple(eta[name].shape)}"
                )
            require(self._name, name, eta[name], eta[name].isfinite(), "finite")
        self._check_proper(eta)

    @property
    def _name(self) -> str:
        return type(self).__name__


class Factor(NamedTuple):
    """A family together with the natural parameters of one of its members."""

    family: Family
    eta: Natural

    def expected(self) -> Natural:
        """Expected statistics under this member."""
        return self.family.expected(self.eta)


def require(who: str, what: str, value: Tensor, ok: Tensor, rule: str) -> None:
    """Raise `DataError` naming the first entry of ``value`` for which ``ok`` is false."""
    if bool(ok.all()):
        return
    where = tuple((~ok).nonzero()[0].tolist())
    place = f" at {where}" if where else ""
    raise DataError(f"{who}: {what} must be {rule}, got {value[where].item()}{place}")


def require_positive(who: str, what: str, value: Tensor) -> None:
    """Raise `DataError` unless every entry is above zero."""
    require(who, what, value, value > 0, "positive")


def require_positive_definite(who: str, what: str, matrix: Float[Tensor, "*batch D D"]) -> None:
    """Raise `DataError` unless every matrix is symmetric and positive definite, naming the first that is not."""
    asymmetry = (matrix - matrix.mT).abs().amax((-2, -1))
    tolerance = torch.finfo(matrix.dtype).eps ** 0.5 * matrix.abs().amax((-2, -1))
    require(who, f"asymmetry of {what}", asymmetry, asymmetry <= tolerance, "zero")
    smallest = torch.linalg.eigvalsh(matrix)[..., 0]
    definite = (torch.linalg.cholesky_ex(matrix).info == 0) & (smallest > 0)
    require(who, f"smallest eigenvalue of {what}", smallest, definite, "positive")


def common_batch(values: Natural, event_dims: Mapping[str, int]) -> Natural:
    """Repeat every statistic over the batch shape they share, in memory of its own so that it can be saved."""
    start = {name: value.ndim - event_dims[name] for name, value in values.items()}
    batch = torch.broadcast_shapes(*(value.shape[: start[name]] for name, value in values.items()))
    return {name: value.expand((*batch, *value.shape[start[name] :])).contiguous() for name, value in values.items()}


def as_tensors(*values: Tensor | float) -> list[Tensor]:
    """Turn numbers into tensors of the one floating dtype, and the device, of the tensors among ``values``."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtypes = {value.dtype for value in tensors if value.is_floating_point()} or {torch.float64}
    if len(dtypes) > 1:
        came = " and ".join(sorted(map(str, dtypes)))
        raise DataError(f"natural: parameters must have one floating dtype, got {came}; convert them first")
    device = tensors[0].device if tensors else None
    return [torch.as_tensor(value, dtype=min(dtypes, key=str), device=device) for value in values]


def _sum_events(values: Tensor, dims: int) -> Tensor:
    return values.flatten(-dims).sum(-1) if dims else values
