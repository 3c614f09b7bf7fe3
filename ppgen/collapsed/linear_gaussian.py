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

from ppgen.collapsed.base import Collapsed
from ppgen.collapsed.block import GaussianBlock
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.emissions.emission import holds_somewhere
from ppgen.emissions.quadratic import homogeneous, marginalize
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.regression import LOG_2PI, Regression

__all__ = ["LinearGaussian", "LinearGaussianLatents"]

Shape = torch.Size | list[int] | tuple[int, ...]

ONCE = torch.Size()


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
        exists = torch.arange(value.shape[-2], device=value.device) < self.lengths[:, None]
        return torch.where(exists[..., None], value, torch.nan)


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
            raise DataError(
                f"LinearGaussian: one batch dimension of {tuple(self.batch_shape)} sequences, got {tuple(batch_shape)}"
            )
        return self

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, GaussianBlock]:
        return {"h": self._block(x)}

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log joint density of the frames and the states; steps past the end are standard normal."""
        h, T, L = m["h"], x.shape[1], self.dynamics.outputs
        exists = (torch.arange(T, device=x.device) < sequence_lengths(x)[:, None]).to(h["mean"])
        alone = torch.cat([torch.ones_like(exists[:, :1]), 1 - exists[:, 1:]], 1)
        norm = h["outer"].diagonal(dim1=-2, dim2=-1).sum(-1)
        standard = (-0.5 * (norm + L * LOG_2PI) * alone).sum(-1)
        return standard + self._moved(h, exists) + self._seen(x, h)

    def exact(self, x: Tensor) -> bool:
        """Always: the states are one block, and nothing else is latent."""
        return True

    def latents(self, x: Float[Tensor, "N T D"]) -> LinearGaussianLatents:
        """Posterior of the continuous states given ``x``."""
        return LinearGaussianLatents(self._block(x), self.settle(x)["h"], sequence_lengths(x))

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given the states ``h``; trailing NaN stays."""
        exists = torch.arange(x.shape[1], device=x.device) < sequence_lengths(x)[:, None]
        h = values["h"]
        return torch.where(exists[..., None], self._observe(x, h, self._known(h)), x)

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
            score, pull, gain = _observed(x[:, t], frame, C[:, :L] @ spread, C[:, :L], noise)
            mean, spread = mean + pull, spread - gain
            scores.append(score)
        return torch.stack(scores, 1)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed)."""
        N, T, D = x.shape
        steps = T + horizon
        if self.u is not None and self.u.ndim == 3 and self.u.shape[1] < steps:
            raise DataError(
                f"LinearGaussian: inputs of a forecast must have a row for each step seen and ahead, {steps}, got "
                f"{self.u.shape[1]}; pass u with horizon={horizon} more steps"
            )
        end = sequence_lengths(x)
        h = self._block(x).sample(self.settle(x)["h"])
        last = h.gather(1, (end - 1).clamp_min(0)[:, None, None].expand(-1, 1, h.shape[-1]))[:, 0]
        known = self._known(h.new_empty(N, steps, 0))
        ahead = end[:, None] + torch.arange(horizon, device=x.device)
        known = known.gather(1, ahead[..., None].expand(-1, -1, known.shape[-1]))
        states = self._onwards(last, known, fresh=end == 0)
        return self._observe(x.new_full((N, horizon, D), torch.nan), states, known)

    def sample(self, sample_shape: Shape = ONCE) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh states, and their observations."""
        (N,), (T, D) = self.batch_shape, self.event_shape
        empty = torch.full((N, T, D), torch.nan, dtype=torch.float64, device=self.s_dynamics["log_det"].device)
        start, known = empty.new_zeros(N, self.dynamics.outputs), self._known(empty[..., :0])
        fresh = torch.ones(N, dtype=torch.bool, device=empty.device)
        count = torch.Size(sample_shape).numel()
        drawn = [self._observe(empty, self._onwards(start, known, fresh), known) for _ in range(count)]
        return torch.stack(drawn).reshape(*sample_shape, N, T, D)

    def _onwards(self, h: Float[Tensor, "N L"], known: Float[Tensor, "N H J"], fresh: Tensor) -> Float[Tensor, "N H L"]:
        """Draw the states that follow ``h``, from the first one on where a sequence is ``fresh``.

        Step by step, for the precision of a chain that nothing observes is all but singular where its dynamics grow.
        """
        A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
        root = torch.linalg.cholesky(precision)
        white = torch.randn_like(h[..., None].expand(*h.shape, known.shape[1]))
        noise = torch.linalg.solve_triangular(root.mT, white, upper=True)
        first, states = torch.randn_like(h), []
        for t in range(known.shape[1]):
            following = torch.cat([h, known[:, t]], -1) @ A.mT + noise[..., t]
            h = torch.where(fresh[:, None], first, following) if t == 0 else following
            states.append(h)
        return torch.stack(states, 1)

    def _block(self, x: Tensor) -> GaussianBlock:
        return GaussianBlock(x.shape[1], self.dynamics.outputs, x)

    def _known(self, mean: Tensor) -> Float[Tensor, "N T J"]:
        """Regressors of every step that are known: inputs and a one."""
        one = mean.new_ones(*mean.shape[:-1], 1)
        if self.u is None:
            return one
        u = self.u.to(mean)
        u = u[:, None].expand(-1, mean.shape[1], -1) if u.ndim == 2 else u[:, : mean.shape[1]]
        return torch.cat([u, one], -1)

    def _moved(self, h: Natural, exists: Float[Tensor, "N T"]) -> Float[Tensor, " N"]:
        """Log density of every step given the one before it, from moments summed over time."""
        if exists.shape[1] < 2:
            return exists.new_zeros(len(exists))
        weight, known = exists[:, 1:], self._known(h["mean"])[:, 1:]
        before, after = h["mean"][:, :-1], h["mean"][:, 1:]
        weighted = known * weight[..., None]
        yy = _weighed(h["outer"][:, 1:], weight)
        yr = torch.cat([_weighed(h["cross"], weight).mT, after.mT @ weighted], -1)
        rr = _second(_weighed(h["outer"][:, :-1], weight), before.mT @ weighted, known.mT @ weighted)
        P, linear, Q, constant = self.dynamics.form(self.s_dynamics)
        return _inner(P, yy) + _inner(linear, yr) + _inner(Q, rr) + constant * weight.sum(-1)

    def _seen(self, x: Tensor, h: Natural) -> Float[Tensor, " N"]:
        """Log density of the observed entries of every frame given its state."""
        missing = torch.isnan(x)
        value, known = torch.where(missing, 0.0, x), self._known(h["mean"])
        if holds_somewhere(missing) is False:
            return self._whole(x, h, known)
        if self.emission.full:
            return self._full(value, missing, h, known)
        return self._each(value, (~missing).to(value), h, known)

    def _whole(self, x: Tensor, h: Natural, known: Tensor) -> Float[Tensor, " N"]:
        """The same where all entries were observed, from moments summed over time."""
        P, linear, Q, constant = self.emission.form(self.s_emission)
        yr = x.mT @ torch.cat([h["mean"], known], -1)
        rr = _second(h["outer"].sum(1), h["mean"].mT @ known, known.mT @ known)
        own = _inner(P, x.mT @ x) if self.emission.full else x.square().sum(1) @ P.diagonal()
        return own + _inner(linear, yr) + _inner(Q, rr) + constant * x.shape[1]

    def _each(self, value: Tensor, seen: Tensor, h: Natural, known: Tensor) -> Float[Tensor, " N"]:
        """The same with residuals that are independent: each feature sums the moments of the steps that observed it."""
        s = self.s_emission
        yr = value.mT @ torch.cat([h["mean"], known], -1)
        hk, kk = h["mean"][..., None] * known[..., None, :], known[..., None] * known[..., None, :]
        sums = [(seen.mT @ part.flatten(-2)).unflatten(-1, part.shape[-2:]) for part in (h["outer"], hk, kk)]
        own = value.square().sum(1) @ s["precision"][..., 0, 0] + seen.sum(1) @ (s["log_det"] - LOG_2PI / 2)
        return own + _inner(s["linear"][..., 0, :], yr) + (s["quadratic"] * _second(*sums)).sum((-1, -2, -3))

    def _full(self, value: Tensor, missing: Tensor, h: Natural, known: Tensor) -> Float[Tensor, " N"]:
        """The same with residuals that are correlated: missing entries are integrated out frame by frame."""
        L, D = self.dynamics.outputs, self.emission.outputs
        P, linear, Q, constant = self.emission.form(self.s_emission)
        form, constant = _without(homogeneous(P, linear, Q), constant, missing)
        xx, xr, rr = form[..., :D, :D], form[..., :D, D:], form[..., D:, D:]
        cross = (xr.mT @ value[..., None])[..., 0]
        slope = 2 * cross[..., :L] + 2 * (rr[..., :L, L:] @ known[..., None])[..., 0]
        own = ((xx @ value[..., None])[..., 0] * value).sum(-1) + 2 * (cross[..., L:] * known).sum(-1)
        own = own + ((rr[..., L:, L:] @ known[..., None])[..., 0] * known).sum(-1) + constant
        return (own + (slope * h["mean"]).sum(-1) + (rr[..., :L, :L] * h["outer"]).sum((-1, -2))).sum(-1)

    def _observe(self, x: Tensor, h: Float[Tensor, "N T L"], known: Tensor) -> Float[Tensor, "N T D"]:
        """Draw the NaN entries of ``x`` given the states and the entries that were observed."""
        A, precision = self.emission.mean_and_precision(self.s_emission)
        mean = torch.cat([h, known], -1) @ A.mT
        hidden = torch.isnan(x)
        inside = hidden[..., :, None] & hidden[..., None, :]
        eye = torch.eye(x.shape[-1], dtype=precision.dtype, device=precision.device)
        root = torch.linalg.cholesky(torch.where(inside, precision, eye))
        apart = torch.where(hidden, 0.0, x - mean)
        pull = torch.where(hidden, (precision @ apart[..., None])[..., 0], 0.0)
        noise = torch.linalg.solve_triangular(root.mT, torch.randn_like(mean)[..., None], upper=True)
        drawn = mean + (noise - torch.cholesky_solve(pull[..., None], root))[..., 0]
        return torch.where(hidden, drawn, x)


def _observed(
    x: Float[Tensor, "N D"],
    mean: Float[Tensor, "N D"],
    cross: Float[Tensor, "N D L"],
    C: Float[Tensor, "D L"],
    noise: Tensor,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N L"], Float[Tensor, "N L L"]]:
    """Log density of what is seen of a frame; how that moves the state's mean, and what it takes off its covariance.

    ``mean`` is the frame's, ``cross`` its covariance with the state; entries that are missing are pinned.
    """
    seen = ~torch.isnan(x)
    both = seen[..., :, None] & seen[..., None, :]
    eye = torch.eye(x.shape[-1], dtype=noise.dtype, device=noise.device)
    root = torch.linalg.cholesky(torch.where(both, cross @ C.mT + noise, eye))
    apart = torch.where(seen, x - mean, 0.0)[..., None]
    white = torch.linalg.solve_triangular(root, torch.cat([apart, cross * seen[..., None]], -1), upper=False)
    residual, link = white[..., :1], white[..., 1:]
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    count = seen.sum(-1).to(mean)  # a whole number times a float would be single precision
    score = -0.5 * residual.square().sum((-1, -2)) - log_det - count * (LOG_2PI / 2)
    return score, (link.mT @ residual)[..., 0], link.mT @ link


def _weighed(value: Float[Tensor, "N T a b"], weight: Float[Tensor, "N T"]) -> Float[Tensor, "N a b"]:
    return torch.einsum("ntab,nt->nab", value, weight)


def _second(
    hh: Float[Tensor, "*n L L"], hk: Float[Tensor, "*n L J"], kk: Float[Tensor, "*n J J"]
) -> Float[Tensor, "*n R R"]:
    """Second moments of the regressors, from those of the latent and of the known ones."""
    return torch.cat([torch.cat([hh, hk], -1), torch.cat([hk.mT, kk], -1)], -2)


def _inner(a: Float[Tensor, "a b"], b: Float[Tensor, "N a b"]) -> Float[Tensor, " N"]:
    return (a * b).sum((-1, -2))


def _without(form: Float[Tensor, "W W"], constant: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """The quadratic form over (x, r) with the missing entries of x integrated out, and its constant, for each frame.

    A frame without observations has the factor one.
    """
    if not missing.any():
        return form.expand(*missing.shape[:-1], *form.shape), constant.expand(missing.shape[:-1])
    reduced, offset = marginalize(form[None], missing.flatten(0, -2))
    frames, seen = missing.shape[:-1], (~missing.all(-1)).to(form)
    reduced, offset = reduced[:, 0].unflatten(0, frames), offset[:, 0].unflatten(0, frames)
    return reduced * seen[..., None, None], (constant + offset) * seen
