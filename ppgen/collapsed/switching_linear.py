r"""Switching linear dynamical system as one distribution over whole sequences.

.. math:: z_1 \sim \mathrm{Cat}(\pi), \quad z_t \sim \mathrm{Cat}(P_{z_{t-1}})

and given these states the linear system of :mod:`ppgen.collapsed.switching_system`. Both kinds of states together have
no closed form: ``log_prob`` is the bound of structured mean field, :math:`q(z)\, q(h)`, each the exact posterior given
the other (Ghahramani & Hinton 2000), and equals the log density for K = 1. An entry of ``x`` that is NaN is integrated
out; trailing NaN means a shorter sequence.

Answers follow paths of states instead, and sum h out along each (:mod:`ppgen.messages.switching.filter`): the evidence
is then unbiased and the states are as unsure as they should be.

References: Ghahramani & Hinton (2000), "Variational learning for switching state-space models"; Fox et al. (2011).
"""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.collapsed.estimated import wanted
from ppgen.collapsed.linear_frames import draw_onwards
from ppgen.collapsed.paths import Paths
from ppgen.collapsed.switching_system import SwitchingLatents, SwitchingSystem
from ppgen.constants import LOG_2PI
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.emissions.quadratic import homogeneous
from ppgen.families.family import Natural
from ppgen.families.regression import Regression
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain
from ppgen.messages.switching.filter import Regimes, Switching

__all__ = ["SwitchingLinear"]

PARTICLES = 128  # at most: every step is observed, so that paths are told apart as they go
ESTIMATED = (
    "unbiased estimates of p(x | theta) by a particle filter over the states; their logarithms differ from call to call"
)


@final
class SwitchingLinear(SwitchingSystem):
    """Distribution over ``x`` (N, T, D) whose states are a Markov chain.

    Parameters are those of `SwitchingSystem`, and ``log_transition`` (K, K), from row to column, which need not be
    normalised either.
    """

    def __init__(
        self,
        log_initial: Float[Tensor, " K"],
        log_transition: Float[Tensor, "K K"],
        dynamics: Regression,
        emission: Regression,
        s_dynamics: Natural,
        s_emission: Natural,
        shape: tuple[int, int],
        u: Tensor | None = None,
    ) -> None:
        self.log_transition = log_transition
        super().__init__(log_initial, dynamics, emission, s_dynamics, s_emission, shape, u)

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        """The chain of states, given expected statistics of h."""
        return discrete_chain(self.log_initial, self.log_transition, self._potential(x, m["h"]), sequence_lengths(x))

    def exact(self, x: Float[Tensor, "N T D"]) -> bool:
        """Whether there is one state, so that h is all that is latent."""
        return len(self.log_initial) == 1

    def log_prob(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, " N"]:
        """Bound of the log density of each row; inside `estimates` an estimate whose exponential is unbiased."""
        said = wanted()
        found = None if said is None else self._paths(x)
        if said is None or found is None:
            return self.evidence(x, self.settle(x))
        said.words = ESTIMATED
        paths, constant = found
        return torch.where(sequence_lengths(x) > 0, paths.log_evidence() + constant, 0.0)

    def draw(self, x: Float[Tensor, "N T D"]) -> dict[str, Tensor]:
        """One joint draw of both kinds of states: a path by particles, then h given it."""
        found = self._paths(x)
        if found is None:
            return super().draw(x)
        with torch.no_grad():
            z = found[0].path()
            block = self.blocks(x)["h"]
            h = block.sample(self._best(x, {"h": block.start(len(x))}, "h", z))
        return {"h": h, "z": z}

    def latents(self, x: Float[Tensor, "N T D"]) -> "SwitchingLatents":
        """Posterior of the states from their paths; from the one Gaussian block where there is one state."""
        found = self._paths(x)
        if found is None:
            local = self.settle(x)
            mean, _ = self.blocks(x)["h"].solved(local["h"])
            return SwitchingLatents(self, x, self.summed(x, {"h": mean}).marginals, mean["mean"])
        marginals, paths = found[0].smoothed()
        block = self.blocks(x)["h"]
        each = [block.chain(self._best(x, {"h": block.start(len(x))}, "h", z)).mean for z in paths]
        return SwitchingLatents(self, x, marginals, torch.stack(each).mean(0))

    def _probabilities(self, x: Float[Tensor, "N T D"]) -> Tensor:
        found = self._paths(x)
        return torch.ones_like(self.log_initial) if found is None else found[0].smoothed()[0]

    def _onwards(
        self, h: Float[Tensor, "N L"], z: Int[Tensor, " N"], known: Float[Tensor, "N H J"], fresh: Tensor
    ) -> tuple[Float[Tensor, "N H L"], Int[Tensor, "N H"]]:
        moves = self.log_transition.log_softmax(-1)
        first = torch.where(fresh[:, None], self.log_initial.log_softmax(-1), moves[z])
        z = discrete_chain(first, moves, h.new_zeros(*known.shape[:2], len(moves))).sample(1)[0]
        A, noise = self._steps(z)
        return draw_onwards(A, noise, h, known, fresh), z

    def _paths(self, x: Tensor) -> tuple[Paths, Float[Tensor, " N"]] | None:
        """Paths of the states along which h is summed out, and what of the log density they leave out; None where
        nothing switches.
        """
        if self.exact(x):
            return None
        with torch.no_grad():
            (N, T), L, K = x.shape[:2], self.dynamics.outputs, len(self.log_initial)
            known, there = self._known(x[..., :0].to(self.log_initial)), exists(x)
            outer, slope, own = self._seen(x, known)
            own = torch.where(there, own, 0.0).movedim(0, -1)
            precision = -(outer + outer.mT) if outer.dim() > 3 else -(outer + outer.mT)[:, None, None]
            switching = Switching(
                self._regimes(), own.expand(N, T, K) - own[..., :1], ~there[..., None].expand(N, T, L),
                slope.new_zeros(N, T, L), torch.arange(slope[..., 0].numel()).reshape(-1, N, T).movedim(0, -1),
                precision.expand(*slope.shape, L).reshape(-1, L, L), slope.reshape(-1, L), sequence_lengths(x), known,
            )  # fmt: skip
            return Paths(switching, self.log_initial, self.log_transition, PARTICLES), own[..., 0].sum(-1)

    def _regimes(self) -> Regimes:
        P, M, Q, constant = self.dynamics.form(self.s_dynamics)
        L = self.dynamics.outputs
        return Regimes.of(homogeneous(P, M, Q), constant + L / 2 * LOG_2PI, L, 1.0, 1.0)
