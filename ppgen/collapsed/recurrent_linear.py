r"""Recurrent switching linear dynamical system as one distribution over whole sequences.

.. math:: z_1 \sim \mathrm{Cat}(\pi), \qquad
    P(z_{t+1} = k \mid z_t, h_t) = \sigma(\psi_k) \prod_{l < k} \sigma(-\psi_l), \quad
    \psi_k = w_k^\top [\mathrm{onehot}(z_t); h_t]

and given these states the linear system of :mod:`ppgen.collapsed.switching_system`. ``log_prob`` is a bound of
structured mean field, :math:`q(z)\, q(h)`, whose logistic functions are bounded too (:mod:`ppgen.collapsed.sticks`).
Answers come from particles that carry both kinds of states (:mod:`ppgen.messages.switching.recurrent`): the evidence is
then unbiased. An entry of ``x`` that is NaN is integrated out; trailing NaN means a shorter sequence.

Reference: Linderman, Johnson, Miller, Adams, Blei & Paninski (2017), "Bayesian learning and inference in recurrent
switching linear dynamical systems".
"""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.collapsed.base import slope
from ppgen.collapsed.estimated import wanted
from ppgen.collapsed.sticks import Sticks
from ppgen.collapsed.switching_system import SwitchingLatents, SwitchingSystem
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.families.family import Natural
from ppgen.families.regression import Regression
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain
from ppgen.messages.switching.recurrent import Recurrent, Smoothed

__all__ = ["RecurrentLinear"]

PARTICLES = 250
PATHS, SMOOTHING = 16, 100  # paths that the posterior is averaged next to, and the particles that they go through
ESTIMATED = (
    "unbiased estimates of p(x | theta) by a particle filter over both kinds of states; their logarithms differ from "
    "call to call"
)


@final
class RecurrentLinear(SwitchingSystem):
    """Distribution over ``x`` (N, T, D) whose continuous states pull at the discrete ones.

    Parameters are those of `SwitchingSystem`, and ``weights``, statistics of the sticks' weights (K - 1, K + L).
    """

    def __init__(
        self,
        log_initial: Float[Tensor, " K"],
        weights: Natural,
        dynamics: Regression,
        emission: Regression,
        s_dynamics: Natural,
        s_emission: Natural,
        shape: tuple[int, int],
        u: Tensor | None = None,
    ) -> None:
        self.sticks = Sticks(weights)
        super().__init__(log_initial, dynamics, emission, s_dynamics, s_emission, shape, u)

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        """The chain of discrete states, given expected statistics of h."""
        moves = self.sticks.log_moves(m["h"])
        return discrete_chain(self.log_initial, moves, self._potential(x, m["h"]), sequence_lengths(x))

    def exact(self, x: Float[Tensor, "N T D"]) -> bool:
        """Never: there are two states at least."""
        return False

    def log_prob(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, " N"]:
        """Bound of the log density of each row; inside `estimates` an estimate whose exponential is unbiased."""
        said = wanted()
        if said is None:
            return self.evidence(x, self.settle(x))
        said.words = ESTIMATED
        return self._smoothed(x, PARTICLES, 0).log_evidence

    def draw(self, x: Float[Tensor, "N T D"]) -> dict[str, Tensor]:
        """One joint draw of both kinds of states, backwards through particles."""
        found = self._smoothed(x, PARTICLES, 1)
        return {"h": found.h[0], "z": found.z[0]}

    def sweep(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw the discrete states, Pólya-gamma numbers and the continuous states, each given the others."""
        with torch.no_grad():
            block = self.blocks(x)["h"]
            m = block.statistic(values["h"])
            z = self.summed(x, {"h": m}).sample(1)[0].clamp_min(0)
            drawn = {"z": z, "omega": self.sticks.numbers(m, z)}
            h = block.sample(slope(lambda own: self._helped(x, own, drawn).sum(), m))
        return {"h": h, **drawn}

    def joint(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log joint density of each row and its states, and of Pólya-gamma numbers where there are any, up to a
        constant.
        """
        if "omega" not in values:
            return super().joint(x, values)
        return self._helped(x, self.blocks(x)["h"].statistic(values["h"]), values)

    def _helped(self, x: Float[Tensor, "N T D"], m: Natural, values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log joint density given statistics of h and values of all else; linear in the statistics."""
        z = values["z"]
        first = torch.where(sequence_lengths(x) > 0, self.log_initial[z[:, 0]], 0.0)
        potential = self._potential(x, m).gather(-1, z[..., None])[..., 0].sum(-1)
        return self.rest(x, {"h": m}) + first + potential + self.sticks.helped(m, z, values["omega"], exists(x))

    def latents(self, x: Float[Tensor, "N T D"]) -> SwitchingLatents:
        """Posterior of both kinds of states, by particles; a row has the same bits at every call."""
        found = self._fixed(x)
        return SwitchingLatents(self, x, found.marginals, found.mean)

    def _probabilities(self, x: Float[Tensor, "N T D"]) -> Tensor:
        return self._fixed(x).marginals

    def _fixed(self, x: Float[Tensor, "N T D"]) -> Smoothed:
        return self._smoothed(x, SMOOTHING, PATHS, torch.zeros(len(x), dtype=torch.long))

    def _onwards(
        self, h: Float[Tensor, "N L"], z: Int[Tensor, " N"], known: Float[Tensor, "N H J"], fresh: Tensor
    ) -> tuple[Float[Tensor, "N H L"], Int[Tensor, "N H"]]:
        N, H = known.shape[:2]
        A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
        root = torch.linalg.cholesky(precision).mT
        white = torch.randn(N, H, h.shape[-1], dtype=h.dtype, device=h.device)
        gumbel = -(-torch.rand(N, H, len(self.log_initial), dtype=h.dtype, device=h.device).log()).log()
        first, paths = torch.randn_like(h), []
        for t in range(H):
            log_next = self.sticks.log_from(z, h)
            log_next = torch.where(fresh[:, None], self.log_initial.log_softmax(-1), log_next) if t == 0 else log_next
            z = (log_next + gumbel[:, t]).argmax(-1)
            noise = torch.linalg.solve_triangular(root[z], white[:, t, :, None], upper=True)
            moved = (A[z] @ torch.cat([h, known[:, t]], -1)[..., None] + noise)[..., 0]
            h = torch.where(fresh[:, None], first, moved) if t == 0 else moved
            paths.append((h, z))
        return torch.stack([h for h, _ in paths], 1), torch.stack([z for _, z in paths], 1)

    def _smoothed(
        self, x: Float[Tensor, "N T D"], particles: int, draws: int, seeds: Int[Tensor, " N"] | None = None
    ) -> Smoothed:
        """What particles say, by the parameters that the statistics stand for."""
        with torch.no_grad():
            known, there = self._known(x[..., :0].to(self.log_initial)), exists(x)
            outer, pull, own = self._seen(x, known)
            seen, own = -(outer + outer.mT), torch.where(there, own, 0.0)
            A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
            system = Recurrent(
                self.log_initial.log_softmax(-1), self.sticks.mean, A, precision, known,
                seen if seen.dim() > 3 else seen[:, None, None], pull, own, sequence_lengths(x),
            )  # fmt: skip
            return system.smoothed(particles, draws, torch.randint(2**32, (len(x),)) if seeds is None else seeds)
