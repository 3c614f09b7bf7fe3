r"""The default guide of a conjugate model: its factors, moved along natural gradients.

The program is run with the expected statistics :math:`s_i = \mathrm E_{q_i}[t(\theta_i)]` in the place of its
parameters', and the bound is :math:`\log p(x; s) - \sum_i \mathrm{KL}(q_i \| p_i)`. Its natural gradient is

.. math:: \tilde\nabla_{\eta_i} \mathcal L = \eta_{0i} + \partial_{s_i} \log p(x; s) - \eta_i ,

so that a step of size :math:`\rho` is :math:`\eta_i \leftarrow (1 - \rho)\, \eta_i + \rho\, (\eta_{0i} + \partial_{s_i}
\log p)`, and everything else in the program (networks, point estimates) has its own gradient from the same backward
pass: statistics hand theirs to the natural parameters unchanged, and the divergence hands over
:math:`\eta_i - \eta_{0i}`.

References: Hoffman, Blei, Wang & Paisley (2013), eq. 20; Johnson, Duvenaud, Wiltschko, Datta & Adams (2016), §4.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast, final

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppgen.expecting import drawn, expecting, first_factors
from ppgen.families.family import Factor, Natural
from ppgen.inference.vb.batches import Batches
from ppgen.model import Conjugate, Model, tracked, updated
from ppgen.programs.task import Task
from ppgen.results.posterior import Factors

__all__ = ["NaturalGuide", "natural_guide"]

PRIOR = "_prior"  # name of the site that scores the factors against their prior


def natural_guide(model: Conjugate, task: Task, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "NaturalGuide":
    """The guide of ``model`` for the data of ``task``, from the first of the model's ways to start.

    A model with a guide of its own, for latents beside the factors, starts from one step at parameters of the prior,
    with the rows in ``args`` and ``kwargs``.
    """
    if type(model).guide is not Model.guide:
        return NaturalGuide(model, _first_step(model, args, kwargs))
    batches = Batches(task.args[0], task.kwargs["u"], None, ragged=model.ragged)
    factors = first_factors(model, [x for x, _ in batches], [u for _, u in batches], model.starts[0])
    return NaturalGuide(model, factors)


@final
class NaturalGuide(nn.Module):
    """Factors of a conjugate model by their natural parameters ``eta``, and both programs run with their expectations.

    Latents beside the factors are drawn by the model's own ``guide``, run with the same expectations.
    """

    def __init__(self, model: Conjugate, factors: Mapping[str, Factor]) -> None:
        super().__init__()
        self.__dict__["_conjugate"] = model  # which is no part of this module
        self.families = {name: factor.family for name, factor in factors.items()}
        parts = {
            name: nn.ParameterDict({key: nn.Parameter(value.detach().clone()) for key, value in factor.eta.items()})
            for name, factor in factors.items()
        }
        self.eta = nn.ModuleDict(parts)

    @property
    def conjugate(self) -> Conjugate:
        """The model, of whose points and networks this module holds none."""
        return cast(Conjugate, self.__dict__["_conjugate"])

    def model(self, x: Tensor, *, u: Any = None, total: int | None = None) -> None:  # noqa: ANN401 (inputs)
        """The model's program, with its prior scored against the factors."""
        with self._expecting():
            self.conjugate.model(x, u=u, total=total)
        pyro.factor(PRIOR, self.conjugate.log_hyperprior() - self._divergence())

    def forward(self, x: Tensor, *, u: Any = None, total: int | None = None) -> None:  # noqa: ANN401 (inputs)
        """The guide's program: latents beside the factors."""
        if type(self.conjugate).guide is not Model.guide:
            with self._expecting():
                self.conjugate.guide(x, u=u, total=total)

    def posterior(self) -> Factors:
        """The factors, and the point estimates beside them."""
        factors = {name: Factor(self.families[name], self._natural(name, detached=True)) for name in self.families}
        return Factors(factors, {site: value.detach() for site, value in self.conjugate.points.items()}).to("cpu")

    @contextmanager
    def _expecting(self) -> Iterator[None]:
        points = self.conjugate.points
        with poutine.block(hide=list(points)), expecting(self._statistics(), points):
            yield

    def _statistics(self) -> dict[str, Natural]:
        """Expected statistics, whose gradients go to the natural parameters unchanged."""
        return {name: self._statistic(name) for name in self.families}

    def _statistic(self, name: str) -> Natural:
        expected = self.families[name].expected(self._natural(name, detached=True))
        return {key: value + _nothing(eta) for (key, value), eta in _zipped(expected, self._natural(name))}

    def _divergence(self) -> Tensor:
        """KL(q || p), whose gradient with respect to the natural parameters is their distance from the prior's."""
        total = torch.zeros((), dtype=torch.float64)
        for name, prior in self.conjugate.natural_prior().items():
            eta = self._natural(name, detached=True)
            total = total + self.families[name].kl(eta, prior.eta).sum()
            for (key, own), start in _zipped(self._natural(name), prior.eta):
                total = total + ((eta[key] - start).detach() * _nothing(own)).sum()
        return total

    def _natural(self, name: str, *, detached: bool = False) -> Natural:
        parts: Any = self.eta[name]
        return {key: value.detach() if detached else value for key, value in parts.items()}


def _first_step(model: Conjugate, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Factor]:
    """One conjugate update with parameters of the prior, at a draw of the model's own guide."""
    prior = model.natural_prior()
    s = {name: tracked(drawn(factor)) for name, factor in prior.items()}
    with expecting(s, model.points):
        q = poutine.trace(model.guide).get_trace(*args, **kwargs)
        p = poutine.trace(poutine.replay(model.model, trace=q)).get_trace(*args, **kwargs)
    torch.as_tensor(p.log_prob_sum()).backward()
    return {name: updated(factor, s[name]) for name, factor in prior.items()}


def _nothing(value: Tensor) -> Tensor:
    """Zero, with the gradient of ``value``."""
    return value - value.detach()


def _zipped(one: Natural, two: Natural) -> list[tuple[tuple[str, Tensor], Tensor]]:
    return [((key, value), two[key]) for key, value in one.items()]
