r"""Switching linear systems whose continuous state says where the discrete one goes.

.. math:: P(z_{t+1} = k \mid z_t, h_t) = \sigma(\psi_k) \prod_{l < k} \sigma(-\psi_l), \qquad
    \psi_k = w_k^\top [\mathrm{onehot}(z_t); h_t], \qquad h_t \sim \mathcal N(A_{z_t} [h_{t-1}; v_t], Q_{z_t}^{-1})

and Gaussian potentials on h. Neither kind of state can be summed out along the other, so particles carry both: a fully
adapted filter (Pitt & Shephard 1999) whose evidence is unbiased, and paths drawn backwards through its particles
(Godsill, Doucet & West 2004).
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.messages._compiled import run_tasks
from ppgen.messages.switching._recurrent_kernels import smooth_recurrent

__all__ = ["Recurrent", "Smoothed"]


class Smoothed(NamedTuple):
    """What particles say: log evidence, probabilities of the discrete states, means of the continuous, and paths."""

    log_evidence: Float[Tensor, " N"]
    marginals: Float[Tensor, "N T K"]
    mean: Float[Tensor, "N T L"]
    z: Int[Tensor, "n N T"]
    h: Float[Tensor, "n N T L"]


@final
@dataclass(frozen=True)
class Recurrent:
    """States of N sequences.

    Parameters
    ----------
    log_initial : (K,) log probabilities of the first discrete state.
    sticks : (K - 1, K + L) weights w.
    coefficients, precision : A (K, L, L + J) and the inverse of Q (K, L, L).
    drive : (N, T, J) given regressors v.
    seen, slope, own : a potential ``own + slope' h - h' seen h / 2`` of each step; of each state where K1 = K, of all
        of them where K1 = 1; ``seen`` (K1, 1, 1, L, L) if it is the same everywhere.
    lengths : length of each sequence.
    """

    log_initial: Float[Tensor, " K"]
    sticks: Float[Tensor, "S KL"]
    coefficients: Float[Tensor, "K L LJ"]
    precision: Float[Tensor, "K L L"]
    drive: Float[Tensor, "N T J"]
    seen: Float[Tensor, "K1 N1 T1 L L"]
    slope: Float[Tensor, "K1 N T L"]
    own: Float[Tensor, "K1 N T"]
    lengths: Int[Tensor, " N"]

    def smoothed(self, particles: int, draws: int, seeds: Int[Tensor, " N"]) -> Smoothed:
        """Filter, and draw so many paths backwards; a row's seed decides its bits, whatever is beside it."""
        (N, T), K, L = self.own.shape[1:], len(self.log_initial), self.precision.shape[-1]
        like = self.log_initial
        A = torch.cat([self.coefficients, torch.zeros_like(self.coefficients[:1])])
        Q = torch.cat([self.precision, torch.eye(L, dtype=like.dtype)[None]])
        half_log_det = torch.linalg.slogdet(Q).logabsdet / 2
        inputs = [self.log_initial, self.sticks, A, Q, half_log_det, self.drive, self.seen, self.slope, self.own]
        arrays = [tensor.detach().contiguous().numpy() for tensor in (*inputs, self.lengths)]
        found = Smoothed(
            like.new_zeros(N), like.new_zeros(N, T, K), like.new_zeros(N, T, L),
            torch.zeros(draws, N, T, dtype=torch.long), like.new_zeros(draws, N, T, L),
        )  # fmt: skip
        work = float(N * T * particles * (draws + K) * L**2)
        run_tasks(smooth_recurrent, N, work, *arrays, particles, seeds.numpy(), *(part.numpy() for part in found))
        return found
