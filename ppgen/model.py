r"""The contract: what a generative model is to the rest of ppgen.

==========  =====================================
``N``       sequences, or rows
``T``       time steps
``D``       features of an observation
``K``       states, or components
``L``       latent width, or lags
``U``       inputs
``V``       vocabulary
``C``       chains
``S``       draws
==========  =====================================

Data is ``x``, inputs ``u``, parameters ``theta``, discrete latents ``z``, continuous latents ``h``. NaN in ``x`` is
the one marker for "not observed": its factor is one. A shorter sequence is the same sequence with trailing NaN.

To add a model: subclass :class:`Model`, say ``dims``, write ``__init__`` and ``model``. A conjugate model subclasses
:class:`Conjugate` and also says ``natural_prior`` and ``evidence``; variational Bayes then needs nothing more.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppgen.collapsed.base import Collapsed
from ppgen.emissions.completion import Completion
from ppgen.errors import DataError
from ppgen.families.family import Factor, Natural

__all__ = ["Conjugate", "Factor", "Model", "tracked", "updated"]


class Model(nn.Module, ABC):
    """A generative model: a Pyro program ``model`` and its ``guide``. Holds no data and runs no inference."""

    data_dims: ClassVar[tuple[str, ...]] = ("sequence", "time", "feature")

    exchangeable: ClassVar[tuple[str, ...]] = ()
    """Axes of ``dims`` whose labels carry no meaning of their own, as ``("state",)``: p(theta, x) is the same under any
    other numbering of them, made in every site at once, along ``next_<axis>`` too. Draws are aligned by them."""

    @property
    @abstractmethod
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Site -> the names of its axes, for labelled results."""

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        """Axis -> its labels; axes without labels are numbered."""
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of ``__init__`` that rebuild this model: JSON values, tensors, and objects with a ``config``."""
        raise NotImplementedError(f"{type(self).__name__}: config must be given to save this model")

    @abstractmethod
    def model(self, x: Tensor, *, u: Tensor | None = None, total: int | None = None) -> None:
        """The Pyro program p(theta, z, x). ``total`` sequences stand behind this batch of ``len(x)``."""

    def guide(self, x: Tensor, *, u: Tensor | None = None, total: int | None = None) -> None:
        """The Pyro program q(theta): independent normals in unconstrained space, unless a model says otherwise."""
        if "_mean_field" not in self.__dict__:
            self.__dict__["_mean_field"] = AutoNormal(self.model)
        self.__dict__["_mean_field"](x, u=u, total=total)

    def check(self, x: Tensor) -> None:  # noqa: B027 (a model without demands has nothing to refuse)
        """Refuse data that this model cannot take, in words."""

    def renumbered(self, axis: str, order: Tensor) -> "Model":
        """Put exchangeable labels in another order: label k of the answer is label ``order[k]`` of this model.

        A model with learnt tensors says itself which of them lie along ``axis``; one without needs nothing.
        """
        if learnt := sorted(self.state_dict()):
            raise DataError(
                f"{type(self).__name__}: must say how {learnt[:4]} follow another order of {axis}, got no "
                "`renumbered(axis, order)`; write it, and return self if they do not"
            )
        return self


class Conjugate(Model):
    """A model whose parameters have conjugate exponential-family priors, given its exactly summed-out latents.

    ``s`` holds one natural statistic per factor: ``t(theta)`` for drawn parameters, ``E_q[t(theta)]`` in variational
    Bayes. The gradient of ``evidence`` with respect to ``s`` is the expected complete-data statistic (Johnson et al.
    2016, the surrogate objective; Hoffman et al. 2013).
    """

    @abstractmethod
    def natural_prior(self) -> dict[str, Factor]:
        """Factor name -> family and natural parameters of its prior."""

    @abstractmethod
    def evidence(
        self, x: Tensor, s: Mapping[str, Natural], completion: Completion | None = None
    ) -> Float[Tensor, " N"]:
        """Log evidence of each sequence, latents summed out, as a function of the natural statistics."""

    @abstractmethod
    def assigned(self, x: Tensor, s: Mapping[str, Natural], z: Tensor) -> Float[Tensor, " N"]:
        """Complete-data score of given latent assignments; its gradient gives a starting point."""

    @abstractmethod
    def guess(self, batches: Sequence[Tensor], method: str) -> list[Tensor]:
        """Latent assignments to start from, one array per batch, by one of the methods in :attr:`starts`."""

    @property
    def starts(self) -> tuple[str, ...]:
        """Ways to start, best first; restarts go through them in turn."""
        return ("kmeans", "random")

    @abstractmethod
    def likelihood(self, s: Mapping[str, Natural], shape: Sequence[int] = (1, 1)) -> Collapsed:
        """The collapsed distribution over data, latents summed out, for natural statistics ``s``."""

    def refine(self, q: Mapping[str, Factor]) -> None:  # noqa: B027 (most models have no hyperparameters)
        """Raise the bound over hyperparameters that are point-estimated, the factors ``q`` held fixed."""

    def log_hyperprior(self) -> Tensor:
        """Log prior of the point-estimated hyperparameters."""
        return torch.zeros((), dtype=torch.float64)

    def complete(
        self, x: Tensor, s: Mapping[str, Natural], previous: Completion | None = None, sweeps: int = 1
    ) -> Completion | None:
        """Posterior of latents with no closed form given the rest, or None where all are summed out exactly."""
        return None

    def statistics(self, theta: Mapping[str, Tensor]) -> dict[str, Natural]:
        """Natural statistics ``t(theta)`` of one draw of every site."""
        return {name: factor.family.statistic(theta) for name, factor in self.natural_prior().items()}

    def started(self, batches: Sequence[Tensor], method: str) -> dict[str, Factor]:
        """Posterior factors given guessed assignments: one conjugate update with their counts."""
        prior = self.natural_prior()
        s = {name: tracked(factor.expected()) for name, factor in prior.items()}
        for x, z in zip(batches, self.guess(batches, method), strict=True):
            self.assigned(x, s, z).sum().backward()
        return {name: updated(factor, s[name]) for name, factor in prior.items()}


def tracked(natural: Natural) -> Natural:
    """A copy whose gradient is recorded."""
    return {name: value.detach().clone().requires_grad_() for name, value in natural.items()}


def updated(prior: Factor, s: Natural, scale: float = 1.0) -> Factor:
    """Conjugate update: prior natural parameters plus the (scaled) gradient with respect to the statistics."""
    counts = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in s.items()}
    return Factor(prior.family, {k: v.detach() + scale * counts[k] for k, v in prior.eta.items()})
