r"""The contract between a generative model and the rest of ppgen.

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

To add a model: subclass :class:`Model`, and write ``dims``, ``__init__`` and ``model``. A conjugate model subclasses
:class:`Conjugate` instead and adds ``natural_prior``; its program takes the statistics of its parameters from
:meth:`Conjugate.statistics`, and variational Bayes runs that same program.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from ppgen.data.arrays import as_observations
from ppgen.errors import DataError
from ppgen.families.family import Factor, Natural
from ppgen.families.moved import Move
from ppgen.keywords import known_keywords

__all__ = ["Conjugate", "Factor", "Model", "statistic", "tracked", "updated"]


class Model(nn.Module, ABC):
    """A generative model: a Pyro program ``model`` and its ``guide``. Holds no data and runs no inference."""

    data_dims: ClassVar[tuple[str, ...]] = ("sequence", "time", "feature")

    def __init_subclass__(cls) -> None:
        """Let the constructor of each model name the option that was meant, as engines do."""
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            cls.__init__ = known_keywords(cls.__name__, "")(cls.__init__)  # type: ignore[method-assign]
            cls.__init__.__doc__ = cls.__init__.__doc__ or cls.__doc__

    only_gibbs: ClassVar[bool] = False
    """True if the density of the data has no closed form and no bound, so that only a Gibbs sampler fits the model."""

    @property
    def ragged(self) -> bool:
        """True if trailing NaN along the second axis of the data ends a row: by default where that axis is time."""
        return self.data_dims[1:2] == ("time",)

    @property
    def exchangeable(self) -> tuple[str, ...]:
        """Axes of ``dims`` whose labels carry no meaning of their own, as ``("state",)``.

        p(theta, x) is the same under any other numbering of them, made in every site at once, along ``next_<axis>``
        too. Draws are aligned by them. A plain attribute of the class serves as well; by default there are none.
        """
        return ()

    @property
    @abstractmethod
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Site -> the names of its axes, for labelled results."""

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        """Axis -> its labels; axes without labels are numbered."""
        return {}

    def input_coords(self, names: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        """Axis -> its labels, of the axes that inputs lie along beside others, by the names of the fit's inputs."""
        return {}

    def composed(self, coords: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Axis -> its labels, of axes whose labels are made of those of others, as these are now called."""
        return {}

    def remarks(self, theta: Mapping[str, Tensor]) -> list[str]:
        """Warnings about draws {site: (S, ...)} of the posterior that a person should read, each a whole sentence."""
        return []

    def cautions(self, x: Tensor, u: Any) -> list[str]:  # noqa: ANN401 (as `model` gets them)
        """Warnings about the data and inputs of a fit that a person should read, each a whole sentence."""
        return []

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Turn draws {site: (C, S, ...)} to be alike, where turns of a latent space leave p(theta, x) as it is.

        By default nothing does. Chains of a model that says so are compared, and its latents averaged, after this.
        """
        return theta

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of ``__init__`` that rebuild this model: JSON values, tensors, and objects with a ``config``."""
        raise NotImplementedError(f"{type(self).__name__}: config must be given to save this model")

    @abstractmethod
    def model(self, x: Tensor, *, u: Any = None, total: int | None = None) -> None:  # noqa: ANN401
        """The Pyro program p(theta, z, x).

        ``u`` are the inputs, a row for each row of ``x``: a tensor; a dict of tensors by name if a dict was given,
        whole numbers (the index of a group) in int64; None if there are none. ``total`` is the number of sequences that
        this batch of ``len(x)`` stands for.
        """

    def guide(self, x: Tensor, *, u: Any = None, total: int | None = None) -> None:  # noqa: ANN401
        """The Pyro program q(theta): independent normals in unconstrained space, unless a model says otherwise."""
        if "_mean_field" not in self.__dict__:
            self.__dict__["_mean_field"] = AutoNormal(self.model)
        self.__dict__["_mean_field"](x, u=u, total=total)

    def observations(self, x: object) -> xr.DataArray:
        """Data as people hold them, as one labelled array with the axes ``data_dims``; NaN is what was not observed.

        Every engine and every answer of a fit reads ``x`` through this method and gives its values to `model`. By
        default it takes all that :func:`ppgen.data.as_observations` takes. A model whose data have another form
        (documents in a sparse matrix, say) reads them here, and also arrays of the form of its own answers.
        """
        return as_observations(x, dims=self.data_dims)

    def check(self, x: Tensor) -> None:  # noqa: B027 (a model without demands has nothing to refuse)
        """Refuse data that this model cannot take, in words."""

    def renumbered(self, axis: str, order: Tensor) -> "Model":
        """Put exchangeable labels in another order: label k of the answer is label ``order[k]`` of this model.

        A model with learnt tensors must override this and reorder those along ``axis``; one without need not.
        """
        if learnt := sorted(self.state_dict()):
            raise DataError(
                f"{type(self).__name__}: must say how {learnt[:4]} follow another order of {axis}, got no "
                "`renumbered(axis, order)`; write it, and return self if they do not"
            )
        return self


@effectful(type="factor")
def _statistic(factor: Factor) -> Natural:
    return factor.family.statistic(factor.family.draw(factor.eta, pyro.sample))


def statistic(name: str, factor: Factor) -> Natural:
    """Natural statistics ``t(theta)`` of the parameters that ``factor`` draws, as a step of a Pyro program.

    By default the sites of the factor are sampled from it. Variational Bayes puts the expectation ``E_q[t(theta)]``
    here instead, so that one program serves every engine.
    """
    found: Natural = _statistic(factor, name=name)
    return found


class Conjugate(Model):
    """A model whose parameters have conjugate exponential-family priors, given latents that are summed out.

    Its program draws the parameters by :meth:`statistics`, and observes data from distributions that are functions of
    these statistics ``s``, linear in each: ``t(theta)`` for drawn parameters, ``E_q[t(theta)]`` in variational Bayes.
    The gradient of the log evidence with respect to ``s`` is then the expected complete-data statistic (Johnson et al.
    2016, the surrogate objective; Hoffman et al. 2013).
    """

    @abstractmethod
    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        """Factor name -> family and natural parameters of its prior.

        ``points`` are values of the sites that :attr:`points` names; without them the prior is that of the estimates.
        """

    @property
    def points(self) -> Mapping[str, Tensor]:
        """Site -> its estimate, of sites of the program that variational Bayes estimates as points."""
        return {}

    @property
    def starts(self) -> tuple[str, ...]:
        """Ways to start, best first; restarts go through them in turn."""
        return ("random",)

    @property
    def ordered(self) -> bool:
        """True if the order of some labels means something, so that draws cannot be aligned by them.

        Chains of a Gibbs sampler then all begin from the first of `starts`, where labels are alike.
        """
        return False

    @property
    def latent_width(self) -> int:
        """Width of a latent space, called ``h``, that `moved` moves; 0 if there is none."""
        return 0

    def moved(self, theta: Mapping[str, Tensor], move: Move) -> tuple[dict[str, Tensor], Tensor]:
        """The sites {site: (n, ...)} of one draw that follow n moves of h along a direction, and the log Jacobian.

        All that is seen stays as likely given h, and so does every step of h but the first, whose prior is standard
        normal. A Gibbs sampler draws such moves (:mod:`ppgen.inference.mcmc.latent_moves`).
        """
        raise NotImplementedError(f"{type(self).__name__}: must say how parameters follow a move of h")

    def statistics(self, **points: Tensor) -> dict[str, Natural]:
        """Statistics of every factor, for use inside the program; ``points`` go to :meth:`natural_prior`."""
        return {name: statistic(name, factor) for name, factor in self.natural_prior(**points).items()}

    def guess(self, batches: Sequence[Tensor], inputs: Sequence[Any], start: str) -> list[dict[str, Tensor]]:
        """Values of the latents to start from, {latent: value} for each batch, by one of the ways in :attr:`starts`.

        If there are none, a run starts from parameters drawn from the prior.
        """
        return [{} for _ in batches]

    def log_hyperprior(self) -> Tensor:
        """Log prior density of the point estimates, on their unconstrained scale."""
        return torch.zeros((), dtype=torch.float64)


def tracked(natural: Natural) -> Natural:
    """A copy whose gradient is recorded."""
    return {name: value.detach().clone().requires_grad_() for name, value in natural.items()}


def updated(prior: Factor, s: Natural, scale: float = 1.0) -> Factor:
    """Conjugate update: prior natural parameters plus the (scaled) gradient with respect to the statistics."""
    counts = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in s.items()}
    return Factor(prior.family, {k: v.detach() + scale * counts[k] for k, v in prior.eta.items()})
