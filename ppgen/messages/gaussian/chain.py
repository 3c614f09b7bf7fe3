r"""Chains of Gaussian vectors.

.. math::
    p(x) = \frac1Z\,
    \exp\Big(-\tfrac12 \sum_t x_t' J_t x_t - \sum_{t<T} x_t' J^\times_t x_{t+1} + \sum_t h_t' x_t\Big)

The gradient of :math:`\log Z` holds the expected statistics: :math:`-\tfrac12 E[x_t x_t']` in :math:`J`,
:math:`-E[x_t x_{t+1}']` in :math:`J^\times`, :math:`E[x_t]` in :math:`h`.

References: Rue & Held (2005), "Gaussian Markov random fields", chapter 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ppgen.messages import _operator as _op
from ppgen.messages.gaussian import _dispatch as _gaussian
from ppgen.messages.gaussian._reparameterised import rsample

__all__ = ["GaussianChain", "gaussian_chain"]


def gaussian_chain(
    J: Float[Tensor, "*#B T L L"],
    J_cross: Float[Tensor, "*#B T-1 L L"],
    h: Float[Tensor, "*#B T L"],
    *,
    strict: bool = True,
) -> "GaussianChain":
    """Gaussian with precision blocks ``J`` on the diagonal and ``J_cross`` above it; leading dims broadcast.

    Parameters
    ----------
    J : (..., T, L, L). Only its symmetric part counts.
    J_cross : (..., T - 1, L, L); ``J_cross[..., t, i, j]`` couples ``x[t, i]`` and ``x[t + 1, j]``. Blocks of zeros, as
        beside a block that is pinned to the identity, cost next to nothing.
    h : (..., T, L).
    strict : refuse a batch that holds an indefinite chain. Otherwise the log-normaliser and the moments of that chain
        alone are NaN, as a sampler wants it, one of whose chains may be lost; drawing from it is refused all the same.

    Raises
    ------
    ValueError : for shapes that do not fit together or tensors that are not floating point; and, when something is
        computed, if the precision is not positive definite, with the sequence and block where that shows.
    """
    return GaussianChain(J, J_cross, h, strict=strict)


class GaussianChain:
    """The log-normaliser and the posterior of a chain, on demand and in float64; :func:`gaussian_chain` makes it.

    The moments can be differentiated once, by an exact pass as long as theirs, which runs only then.
    """

    def __init__(self, J: Tensor, J_cross: Tensor, h: Tensor, *, strict: bool = True) -> None:
        _check(J, J_cross, h)
        self._ending = "" if strict else _gaussian.OR_NAN
        self.batch = torch.broadcast_shapes(J.shape[:-3], J_cross.shape[:-3], h.shape[:-2])
        self.dtype = torch.promote_types(torch.promote_types(J.dtype, J_cross.dtype), h.dtype)
        rows = self.batch.numel()
        h = h.double().expand(self.batch + h.shape[-2:]).reshape(rows, *h.shape[-2:])
        lengths = torch.full((rows,), h.shape[1], device=h.device)
        self._inputs = (_flat(J, self.batch), _flat(J_cross, self.batch), h, lengths)
        self._value: Tensor | None = None
        self._moments: tuple[Tensor, ...] | None = None

    @property
    def log_normalizer(self) -> Float[Tensor, "*B"]:
        """Log of the integral over every x, (...). Its gradient is the expected statistics; no third derivative."""
        if self._value is None:
            self._value = self._shaped(_op.log_normalizer(_gaussian.NAME + self._ending, *self._inputs))
        return self._value

    @property
    def mean(self) -> Float[Tensor, "*B T L"]:
        """Posterior means, (..., T, L)."""
        return self._expected(3)

    @property
    def covariance(self) -> Float[Tensor, "*B T L L"]:
        """Posterior covariance of each ``x[t]``, (..., T, L, L)."""
        return self._expected(1)

    @property
    def cross_covariance(self) -> Float[Tensor, "*B steps L L"]:
        """Posterior covariance of ``x[t]`` (rows) with ``x[t + 1]`` (columns), (..., T - 1, L, L)."""
        return self._expected(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n *B T L"]:
        """``n`` independent exact draws, (n, ..., T, L)."""
        with torch.no_grad():
            return self.rsample(n, generator)

    def rsample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n *B T L"]:
        r"""The draws of :meth:`sample`, differentiable once in J, J_cross and h for the same random numbers.

        A draw is :math:`x_t = E[x_t | x_{t+1}] + U_t \varepsilon_t`, from the last block to the first, with :math:`U_t`
        an upper triangular root of the covariance of x_t given x_{t+1}.
        """
        J, J_cross, h, _ = self._inputs
        noise = torch.randn((n, *h.shape), generator=generator, dtype=torch.float64, device=h.device)
        return rsample(J, J_cross, h, noise).reshape(n, *self.batch, *h.shape[1:]).to(self.dtype)

    def score(self, x: Float[Tensor, "*S T L"]) -> Float[Tensor, "*S"]:
        """Log of the density of ``x`` (n, ..., T, L) or (..., T, L) before it is normalised, (n, ...) or (...).

        Differentiable in everything at will. Less :attr:`log_normalizer` it is the log-density.

        Raises
        ------
        ValueError : for an ``x`` of another shape.
        """
        J, J_cross, h, _ = self._inputs
        event = self.batch + h.shape[1:]
        if x.shape[-len(event) :] != event or x.dim() > len(event) + 1:
            raise ValueError(
                f"gaussian_chain: x must have shape {tuple(event)} or (n, *{tuple(event)}), got {tuple(x.shape)}"
            )
        flat = x.double().reshape(-1, *h.shape)
        pull = h - 0.5 * (J @ flat[..., None])[..., 0]
        pull = pull - pad((J_cross @ flat[:, :, 1:, :, None])[..., 0], (0, 0, 0, 1))
        return (pull * flat).sum((-2, -1)).reshape(x.shape[:-2]).to(self.dtype)

    def mode(self) -> Float[Tensor, "*B T L"]:
        """The most probable x, which is the mean, (..., T, L)."""
        return self.mean

    def _expected(self, part: int) -> Tensor:
        if self._moments is None:
            self._moments = _op.expectations(_gaussian.MOMENTS + self._ending, *self._inputs)
            if not torch.is_grad_enabled():  # the value comes with them
                self._value = self._shaped(self._moments[0])
        return self._shaped(self._moments[part])

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(self.batch + flat.shape[1:]).to(self.dtype)


def _check(J: Tensor, J_cross: Tensor, h: Tensor) -> None:
    if h.dim() < 2 or 0 in h.shape[-2:]:
        raise ValueError(f"gaussian_chain: h must have shape (..., T, L) with T, L >= 1, got {tuple(h.shape)}")
    T, L = h.shape[-2:]
    for name, t, steps, letter in (("J", J, T, "T"), ("J_cross", J_cross, T - 1, "T-1")):
        if tuple(t.shape[-3:]) != (steps, L, L):
            raise ValueError(
                f"gaussian_chain: {name} must have shape (..., {letter}={steps}, L={L}, L={L}) beside h "
                f"{tuple(h.shape)}, got {tuple(t.shape)}"
            )
    for name, t in (("J", J), ("J_cross", J_cross), ("h", h)):
        if not t.is_floating_point():
            raise ValueError(f"gaussian_chain: {name} must be floating point, got {t.dtype}; convert it")


def _flat(t: Tensor, batch: torch.Size) -> Tensor:
    """One batch dim; a tensor that the whole batch shares keeps a single row."""
    event, t = t.shape[-3:], t.double()
    if t.shape[:-3].numel() == 1:
        return t.reshape(1, *event)
    return t.expand(batch + event).reshape(batch.numel(), *event)
