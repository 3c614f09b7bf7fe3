r"""Chains of discrete states that drive a vector autoregression, some of whose frames are not known.

.. math:: p(z, h) \propto p(z) \prod_t \mathcal N(h_t \mid A_{z_t} r_t, Q_{z_t})
    \exp\big(c_{z_t} - \tfrac12 r_t^\top C_{z_t} r_t\big), \qquad r_t = [h_{t-1}; \dots; h_{t-L}; v_t]

with regressors :math:`v_t` that are given, the last of them a one.

Given a path of states the unknown frames are Gaussian, so they are summed out, path by path: a discrete particle
filter. It is exact while there are no more paths through a gap than particles, and else an unbiased estimate of the
evidence. The last factor is that of expected statistics, whose coefficients are uncertain; it is one otherwise.

References: Fearnhead & Clifford (2003), "On-line inference for hidden Markov models via particle filters"; Whiteley,
Andrieu & Doucet (2010), "Efficient Bayesian inference for switching state-space models", for smoothing with it.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.messages._compiled import run_tasks
from ppgen.messages.switching._kernels import smooth

__all__ = ["Regimes", "States", "Switching"]

WORK = 1 << 22  # multiplications that one step of one sequence may cost, about
FEWEST_PARTICLES, MOST_PARTICLES = 100, 1000  # particles
ROUNDING = 1e-9  # a relative loss below it is none


class States(NamedTuple):
    """The states as the particles see them: log-evidence, probabilities and drawn paths."""

    log_evidence: Float[Tensor, " N"]
    marginals: Float[Tensor, "N T K"]
    paths: Int[Tensor, "n N T"]


@final
@dataclass(frozen=True)
class Regimes:
    """Parameters of the next frame in each of the K states, and after these of the first frame and the first steps.

    ``loss`` (K, S + J, S + J) is C over the last L frames, latest first, and the J given regressors.
    """

    regression: Float[Tensor, "K2 D SJ"]
    noise: Float[Tensor, "K2 D D"]
    loss: Float[Tensor, "K SJ SJ"]
    constant: Float[Tensor, " K"]

    @classmethod
    def of(
        cls, form: Float[Tensor, "K W W"], log_det: Float[Tensor, " K"], width: int, first: float, step: float
    ) -> "Regimes":
        """From log-potentials ``w' form w + log_det`` of windows, a density of their first ``width`` entries."""
        precision, cross = -2 * form[:, :width, :width], 2 * form[:, :width, width:]
        noise = torch.linalg.inv(precision)
        regression = noise @ cross
        quadratic = -2 * form[:, width:, width:]
        explained = regression.mT @ cross
        loss = quadratic - (explained + explained.mT) / 2
        size = quadratic.abs().amax((-1, -2), keepdim=True)
        loss = torch.where((loss.abs() <= ROUNDING * size).all(-1, keepdim=True).all(-2, keepdim=True), 0.0, loss)
        constant = log_det - torch.linalg.slogdet(precision).logabsdet / 2
        constant = torch.where(constant.abs() <= ROUNDING * (1 + log_det.abs()), 0.0, constant)
        eye = torch.eye(width, dtype=form.dtype)
        walk = torch.nn.functional.pad(eye, (0, regression.shape[-1] - width))
        start = torch.stack([torch.zeros_like(walk), walk])
        return cls(
            torch.cat([regression, start]),
            torch.cat([noise, torch.stack([first**2 * eye, step**2 * eye])]),
            loss,
            constant,
        )


@final
@dataclass(frozen=True)
class Switching:
    """States and frames of N sequences, some of whose frames are not known.

    Parameters
    ----------
    regimes : parameters of the next frame.
    potential : log-potentials of the states; where a frame and its lags are all known, with what these say.
    known, value : entries of frames that are given.
    partial : row of ``precision`` and ``information`` (a Gaussian potential on a frame) that each frame has, or -1;
        one for all states, or one for each.
    lengths : length of each sequence.
    drive : given regressors of each step, the last of them a one.
    """

    regimes: Regimes
    potential: Float[Tensor, "N T K"]
    known: Bool[Tensor, "N T D"]
    value: Float[Tensor, "N T D"]
    partial: Int[Tensor, "N T K1"]
    precision: Float[Tensor, "p D D"]
    information: Float[Tensor, "p D"]
    lengths: Int[Tensor, " N"]
    drive: Float[Tensor, "N T J"]

    @property
    def lags(self) -> int:
        """Frames before one that it depends on."""
        return (self.regimes.regression.shape[-1] - self.drive.shape[-1]) // self.known.shape[-1]

    @property
    def touched(self) -> Bool[Tensor, "N T"]:
        """Steps whose frame, or one of whose lags, is not known."""
        T = self.known.shape[1]
        exists = torch.arange(T) < self.lengths[:, None]
        open_frame = ~self.known.all(-1) & exists
        lagged = [torch.nn.functional.pad(open_frame, (lag, 0))[:, :T] for lag in range(self.lags + 1)]
        return torch.stack(lagged).any(0) & exists

    @property
    def particles(self) -> int:
        """The number of particles that memory allows."""
        return min(MOST_PARTICLES, max(FEWEST_PARTICLES, WORK // self._step_cost))

    @property
    def cost(self) -> int:
        """Multiplications of one particle, about, at all steps that gaps touch."""
        return int(self.touched.sum()) * self._step_cost

    @property
    def _step_cost(self) -> int:
        K, D = len(self.regimes.constant), self.known.shape[-1]
        size = self.lags * D
        return K * size * (size + D)

    def _sights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussian potentials on frames along one direction each: rows, precisions, informations."""
        rows, weight = _directions(self.precision)
        return rows, weight, (rows @ self.information[..., None])[..., 0]

    def states(
        self,
        log_initial: Float[Tensor, " K"],
        log_transition: Float[Tensor, "K K"],
        *,
        thinning: Float[Tensor, " T"],
        uniforms: Float[Tensor, "n N T"],
        particles: int | None = None,
    ) -> States:
        """Filter and smooth; ``thinning`` and ``uniforms`` are all the randomness: equal ones give equal bits."""
        N, T, K = self.potential.shape
        count = self.particles if particles is None else particles
        high = log_transition.amax()
        start = log_initial.amax()
        evidence, marginals = self.potential.new_zeros(N), self.potential.new_zeros(N, T, K)
        paths = torch.zeros(uniforms.shape, dtype=torch.long)
        touched = self.touched
        inputs = [(log_initial - start).exp(), (log_transition - high).exp(), self.potential, self.lengths, touched]
        inputs += [self.known, self.value, self.partial, *self._sights()]
        loss, size = self.regimes.loss, self.lags * self.known.shape[-1]
        inputs += [self.drive, self.regimes.regression, self.regimes.noise, loss]
        inputs += [*_directions(loss[:, :size, :size]), self.regimes.constant]
        work = int(touched.sum()) * count * K * self.lags * self.known.shape[-1] ** 2
        arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
        options = (bool((loss != 0).any()), self.lags, count)
        rest = [tensor.contiguous().numpy() for tensor in (thinning, uniforms, evidence, marginals, paths)]
        run_tasks(smooth, N, float(work), *arrays, *options, *rest)
        shift = torch.where(self.lengths > 0, start + high * (self.lengths - 1), 0.0)
        return States(evidence + shift, marginals, paths)


def _directions(precision: Float[Tensor, "p D D"]) -> tuple[Float[Tensor, "p D D"], Float[Tensor, "p D"]]:
    """Directions, in rows, along which a Gaussian potential is a product of potentials, and its precisions there."""
    weight, U = torch.linalg.eigh(precision)
    return U.mT.contiguous(), weight.clamp_min(0.0)
