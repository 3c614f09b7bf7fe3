r"""Independent discrete variables: a chain without transitions.

.. math:: p(z_n) \propto \exp(w_{z_n} + \ell_{n z_n})
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.messages import _mixture_kernels as kernels
from ppgen.messages._compiled import has_kernels, is_eager, run_tasks

Context = Any  # what torch hands to the methods of a function; it takes any attribute

__all__ = ["Mixture", "mixture"]


def mixture(log_weights: Float[Tensor, "*#B K"], log_potential: Float[Tensor, "*#B N K"]) -> "Mixture":
    """Mixture of K components for each of N rows; leading dims broadcast.

    Parameters
    ----------
    log_weights : (..., K) log-weights, normalised or not; ``-inf`` shuts a component out.
    log_potential : (..., N, K) log-density of row n under component k. A row without observation is zeros.

    Raises
    ------
    ValueError : for shapes that do not fit together or tensors that are not floating point.
    """
    return Mixture(log_weights, log_potential)


class Mixture:
    """The log-normaliser of every row and the posterior, differentiable at will; :func:`mixture` makes it.

    A row that no component allows has log-normaliser ``-inf``, and responsibilities and a gradient of zero.
    """

    def __init__(self, log_weights: Tensor, log_potential: Tensor) -> None:
        if log_potential.dim() < 2 or log_potential.shape[-1] == 0:
            raise ValueError(
                f"mixture: log_potential must have shape (..., N, K) with K >= 1, got {tuple(log_potential.shape)}"
            )
        if log_weights.dim() < 1 or log_weights.shape[-1] != log_potential.shape[-1]:
            raise ValueError(
                f"mixture: log_weights must have shape (..., K={log_potential.shape[-1]}), "
                f"got {tuple(log_weights.shape)}"
            )
        for name, t in (("log_weights", log_weights), ("log_potential", log_potential)):
            if not t.is_floating_point():
                raise ValueError(f"mixture: {name} must be floating point, got {t.dtype}; convert it")
        self.log_joint = log_weights.unsqueeze(-2) + log_potential

    @property
    def log_normalizer(self) -> Float[Tensor, "*B N"]:
        """Log of the sum over components for every row, (..., N). Its gradient is the responsibilities."""
        if is_eager() and has_kernels(self.log_joint) and self.log_joint.dtype == torch.float64:
            found: Tensor = _LogSum.apply(self.log_joint)
            return found
        return _log_sum(self.log_joint)

    @property
    def responsibilities(self) -> Float[Tensor, "*B N K"]:
        """Probability of each component for each row, (..., N, K)."""
        impossible = _impossible(self.log_joint)
        return torch.where(impossible, 0.0, torch.where(impossible, 0.0, self.log_joint).softmax(-1))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Int[Tensor, "n *B N"]:
        """``n`` independent draws of every row's component, (n, ..., N) of int64.

        Raises
        ------
        ValueError : where no component is possible.
        """
        self._refuse_impossible()
        shares = self.responsibilities.detach()
        flat = shares.reshape(-1, shares.shape[-1])
        if not len(flat):
            return torch.empty((n, *shares.shape[:-1]), dtype=torch.long, device=shares.device)
        draws = torch.multinomial(flat, n, replacement=True, generator=generator)
        return draws.T.reshape(n, *shares.shape[:-1])

    def score(self, z: Int[Tensor, "*S N"]) -> Float[Tensor, "*S N"]:
        """Log-weight of the components ``z`` (n, ..., N) or (..., N) of every row, before it is normalised; as ``z``.

        Differentiable in weights and potentials; less :attr:`log_normalizer` it is the log-probability.

        Raises
        ------
        ValueError : for components of another shape, or outside [0, K).
        """
        *event, states = self.log_joint.shape
        if list(z.shape[-len(event) :]) != event or z.dim() > len(event) + 1:
            raise ValueError(f"mixture: z must have shape {(*event,)} or (n, *{(*event,)}), got {tuple(z.shape)}")
        watched = not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(z))
        if watched and ((z < 0) | (z >= states)).any():
            raise ValueError(
                f"mixture: z must lie in [0, K={states}), got {int(z.min())} to {int(z.max())}; count from 0"
            )
        return self.log_joint.expand(*z.shape, states).gather(-1, z[..., None])[..., 0]

    def mode(self) -> Int[Tensor, "*B N"]:
        """Most probable component of every row, (..., N) of int64; raises as :meth:`sample` does."""
        self._refuse_impossible()
        return self.log_joint.argmax(-1)

    def _refuse_impossible(self) -> None:
        bad = _impossible(self.log_joint)[..., 0] | self.log_joint.isnan().any(-1)
        if bad.any():
            row = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"mixture: to draw a component, one must have positive probability, but row {row} has none or "
                "holds NaN; check its potentials for rows of -inf"
            )


def _impossible(log_joint: Tensor) -> Tensor:
    return (log_joint == -torch.inf).all(-1, keepdim=True)


def _log_sum(log_joint: Float[Tensor, "*B N K"]) -> Float[Tensor, "*B N"]:
    impossible = _impossible(log_joint)
    possible = torch.where(impossible, 0.0, log_joint)  # keeps NaN out of the gradient
    return torch.where(impossible[..., 0], -torch.inf, possible.logsumexp(-1))


class _LogSum(torch.autograd.Function):
    """`_log_sum` in one pass, which leaves the responsibilities for the gradient."""

    @staticmethod
    def forward(ctx: Context, log_joint: Tensor) -> Tensor:
        first = log_joint.movedim(-1, 0)
        joint = first.reshape(len(first), -1).contiguous()
        shares, value = torch.empty_like(joint), joint.new_empty(joint.shape[1])
        arrays = (t.numpy() for t in (joint, shares, value))
        run_tasks(kernels.log_sums, -(-joint.shape[1] // kernels.ROWS_AT_ONCE), 8 * joint.numel(), *arrays)
        ctx.save_for_backward(log_joint, shares.reshape(first.shape).movedim(0, -1))
        return value.reshape(first.shape[1:])

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> Tensor:
        log_joint, shares = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return gradient.unsqueeze(-1) * shares
        with torch.enable_grad():
            return torch.autograd.grad(_log_sum(log_joint), log_joint, gradient, create_graph=True)[0]
