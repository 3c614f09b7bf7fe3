r"""Linear dynamical system as one distribution over whole sequences, its continuous states summed out.

.. math::
    h_1 \sim \mathcal N(0, I), \quad h_t \sim \mathcal N(A\,[h_{t-1}; u_t; 1], Q), \quad
    x_t \sim \mathcal N(C\,[h_t; u_t; 1], R)

The states are one Gaussian block and nothing else is latent, so ``log_prob`` is the exact evidence. An entry of ``x``
that is NaN is integrated out: with a diagonal R its term drops out, with a full R it is integrated out of the Gaussian
of its frame, for each pattern of missing entries by one batched factorisation. Trailing NaN means a shorter sequence.

References: Kalman (1960); Rauch, Tung & Striebel (1965); Beal (2003), §5, for the expected statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import pad

from ppgen.collapsed.base import Collapsed, Local
from ppgen.collapsed.block import GaussianBlock
from ppgen.collapsed.linear_frames import (
    draw_frames,
    draw_onwards,
    known_ahead,
    known_regressors,
    observed,
    seen_frames,
)
from ppgen.constants import LOG_2PI
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.emissions.emission import holds_somewhere
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.regression import Regression

__all__ = ["LinearGaussian", "LinearGaussianLatents"]


@final
@dataclass(frozen=True)
class LinearGaussianLatents:
    """Posterior of the continuous states of a batch of sequences."""

    block: GaussianBlock
    eta: Natural
    lengths: Int[Tensor, " N"]

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "h": ("sequence", "time", "latent"),
        "h_draw": ("sequence", "time", "latent"),
    }

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``h``: mean of each state; NaN past the end of a sequence."""
        return {"h": self._end(self.block.chain(self.eta).mean)}

    @property
    def mode(self) -> dict[str, Tensor]:
        """Nothing beside the mean."""
        return {}

    def sample(self) -> dict[str, Tensor]:
        """``h_draw``: one draw of all states; NaN past the end of a sequence."""
        return {"h_draw": self._end(self.block.sample(self.eta))}

    def _end(self, value: Tensor) -> Tensor:
        inside = torch.arange(value.shape[-2], device=value.device) < self.lengths[:, None]
        return torch.where(inside[..., None], value, torch.nan)


@final
class LinearGaussian(Collapsed):
    """Distribution over ``x`` (N, T, D) for statistics of the dynamics and of the emission.

    Parameters
    ----------
    dynamics, emission : regressions on (h, u, 1).
    s_dynamics, s_emission : their natural statistics.
    shape : (N, T) of what :meth:`sample` draws.
    u : inputs (N, T, U), or (N, U) for ones that stay the same; of `forecast` with a row for each step ahead too.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        dynamics: Regression,
        emission: Regression,
        s_dynamics: Natural,
        s_emission: Natural,
        shape: tuple[int, int],
        u: Tensor | None = None,
    ) -> None:
        self.dynamics, self.emission = dynamics, emission
        self.s_dynamics, self.s_emission, self.u = s_dynamics, s_emission, u
        super().__init__(torch.Size(shape[:1]), torch.Size([shape[1], emission.outputs]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "LinearGaussian":
        if tuple(batch_shape) != tuple(self.batch_shape):
            own, came = tuple(self.batch_shape), tuple(batch_shape)
            raise DataError(f"LinearGaussian: must have one batch dimension of {own} sequences, got {came}")
        return self

    @property
    def apart(self) -> bool:
        return not self.emission.full

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, GaussianBlock]:
        return {"h": self._block(x)}

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log joint density of the frames and the states; steps past the end are standard normal."""
        eta, constant = self._natural(x)
        return constant + self._block(x).inner(eta, m["h"])

    def settle(self, x: Float[Tensor, "N T D"], local: Local | None = None, sweeps: int | None = None) -> Local:
        """Natural parameters of the states' posterior, which depend on no start."""
        with torch.no_grad():
            return {"h": self._natural(x)[0]}

    def evidence(self, x: Float[Tensor, "N T D"], local: Local) -> Float[Tensor, " N"]:
        """Log density of each row, from the log-normaliser of the states alone."""
        eta, constant = self._natural(x)
        return constant + self._block(x).chain(eta).log_normalizer

    def log_prob(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, " N"]:
        """Log density of each row."""
        return self.evidence(x, {})

    def exact(self, x: Tensor) -> bool:
        """Always: the states are one block, and nothing else is latent."""
        return True

    def latents(self, x: Float[Tensor, "N T D"]) -> LinearGaussianLatents:
        """Posterior of the continuous states given ``x``."""
        return LinearGaussianLatents(self._block(x), self.settle(x)["h"], sequence_lengths(x))

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given the states ``h``; trailing NaN stays."""
        h = values["h"]
        return torch.where(exists(x)[..., None], self._observe(x, h, self._known(h)), x)

    def log_prob_steps(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T"]:
        """Log density of each step given those before it; zero past the end of a sequence.

        By a Kalman filter in moments, which keeps its digits where dynamics grow, and takes a step at a time.
        """
        A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
        C, inverse_noise = self.emission.mean_and_precision(self.s_emission)
        process, noise = torch.linalg.inv(precision), torch.linalg.inv(inverse_noise)
        L, scores = self.dynamics.outputs, []
        known = self._known(x[..., :0].to(A))
        mean, spread = A.new_zeros(len(x), L), torch.eye(L, dtype=A.dtype, device=A.device).expand(len(x), L, L)
        for t in range(x.shape[1]):
            if t:
                mean = torch.cat([mean, known[:, t]], -1) @ A.mT
                spread = A[:, :L] @ spread @ A[:, :L].mT + process
            frame = torch.cat([mean, known[:, t]], -1) @ C.mT
            score, pull, gain = observed(x[:, t], frame, C[:, :L] @ spread, C[:, :L], noise)
            mean, spread = mean + pull, spread - gain
            scores.append(score)
        return torch.stack(scores, 1)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed)."""
        N, T, D = x.shape
        end = sequence_lengths(x)
        h = self._block(x).sample(self.settle(x)["h"])
        last = h.gather(1, (end - 1).clamp_min(0)[:, None, None].expand(-1, 1, h.shape[-1]))[:, 0]
        known = known_ahead("LinearGaussian", self.u, h, end, T, horizon)
        states = self._onwards(last, known, fresh=end == 0)
        return self._observe(x.new_full((N, horizon, D), torch.nan), states, known)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh states, and their observations."""
        (N,), (T, D) = self.batch_shape, self.event_shape
        empty = torch.full((N, T, D), torch.nan, dtype=torch.float64, device=self.s_dynamics["log_det"].device)
        start, known = empty.new_zeros(N, self.dynamics.outputs), self._known(empty[..., :0])
        fresh = torch.ones(N, dtype=torch.bool, device=empty.device)
        count = torch.Size(sample_shape).numel()
        drawn = [self._observe(empty, self._onwards(start, known, fresh), known) for _ in range(count)]
        return torch.stack(drawn).reshape(*sample_shape, N, T, D)

    def _onwards(self, h: Float[Tensor, "N L"], known: Float[Tensor, "N H J"], fresh: Tensor) -> Float[Tensor, "N H L"]:
        """Draw the states that follow ``h``, from the first one on where a sequence is ``fresh``."""
        A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
        root = torch.linalg.cholesky(precision)
        white = torch.randn_like(h[..., None].expand(*h.shape, known.shape[1]))
        noise = torch.linalg.solve_triangular(root.mT, white, upper=True).mT
        return draw_onwards(A, noise, h, known, fresh)

    def _block(self, x: Tensor) -> GaussianBlock:
        return GaussianBlock(x.shape[1], self.dynamics.outputs, x)

    def _known(self, mean: Tensor) -> Float[Tensor, "N T J"]:
        return known_regressors(self.u, mean)

    def _natural(self, x: Tensor) -> tuple[Natural, Float[Tensor, " N"]]:
        """Coefficients of the states' statistics in the log joint density, and what does not depend on the states.

        ``outer`` and ``cross`` have one row where nothing is missing.
        """
        L, whole = self.dynamics.outputs, holds_somewhere(torch.isnan(x)) is False
        P, linear, Q, constant = self.dynamics.form(self.s_dynamics)
        moved = exists(x)[: 1 if whole else len(x), 1:].to(P)
        known = self._known(x[..., :0].to(P))
        after, before, alone = pad(moved, (1, 0)), pad(moved, (0, 1)), 1 - pad(moved, (1, 0))
        eye = torch.eye(L, dtype=P.dtype, device=P.device)
        outer, slope, each = seen_frames(self.emission, self.s_emission, x, known, L)
        outer = outer + _times(after, P) + _times(before, Q[:L, :L]) - _times(alone, 0.5 * eye)
        ahead = moved[..., None] * known[:, 1:]
        push = pad(ahead @ linear[:, L:].mT, (0, 0, 1, 0)) + pad(2 * (ahead @ Q[L:, :L]), (0, 0, 0, 1))
        own = each.sum(-1) + ((ahead @ Q[L:, L:]) * known[:, 1:]).sum((-1, -2))
        own = own + constant * moved.sum(-1) - L / 2 * LOG_2PI * alone.sum(-1)
        return {"outer": outer, "cross": _times(moved, linear[:, :L].mT), "mean": slope + push}, own

    def _observe(self, x: Tensor, h: Float[Tensor, "N T L"], known: Tensor) -> Float[Tensor, "N T D"]:
        """Draw the NaN entries of ``x`` given the states and the entries that were observed."""
        return draw_frames(
            *self.emission.mean_and_precision(self.s_emission),
            x,
            torch.cat([h, known], -1),
            diagonal=not self.emission.full,
        )


def _times(weight: Float[Tensor, "N T"], matrix: Float[Tensor, "a b"]) -> Float[Tensor, "N T a b"]:
    return weight[..., None, None] * matrix
