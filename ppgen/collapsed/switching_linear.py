r"""Switching linear dynamical system as one distribution over whole sequences.

.. math::
    z_1 \sim \mathrm{Cat}(\pi), \quad z_t \sim \mathrm{Cat}(P_{z_{t-1}}), \qquad
    h_1 \sim \mathcal N(0, I), \quad h_t \sim \mathcal N(A_{z_t} [h_{t-1}; u_t; 1], Q_{z_t}), \qquad
    x_t \sim \mathcal N(C [h_t; u_t; 1], R)

where C and R may depend on :math:`z_t` too. Given h the states are a chain and are summed out; given z the continuous
states are one Gaussian block. Both together have no closed form: ``log_prob`` is the bound of structured mean field,
:math:`q(z)\, q(h)`, each the exact posterior given the other (Ghahramani & Hinton 2000), and equals the log density for
K = 1. An entry of ``x`` that is NaN is integrated out; trailing NaN means a shorter sequence.

Answers follow paths of states instead, and sum h out along each (:mod:`ppgen.messages.switching.filter`): the evidence
is then unbiased and the states are as unsure as they should be.

References: Ghahramani & Hinton (2000), "Variational learning for switching state-space models"; Fox et al. (2011).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import pad

from ppgen.collapsed.base import Collapsed, Local, slope
from ppgen.collapsed.block import GaussianBlock
from ppgen.collapsed.estimated import wanted
from ppgen.collapsed.linear_frames import draw_frames, draw_onwards, known_ahead, known_regressors, seen_frames
from ppgen.collapsed.paths import Paths
from ppgen.constants import LOG_2PI
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.emissions.quadratic import homogeneous
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.regression import Regression
from ppgen.messages import discrete_chain
from ppgen.messages._compiled import is_eager
from ppgen.messages.discrete.chain import DiscreteChain
from ppgen.messages.switching.filter import Regimes, Switching

__all__ = ["SwitchingLinear", "SwitchingLinearLatents"]

PARTICLES = 128  # at most: every step is observed, so that paths are told apart as they go
ESTIMATED = (
    "unbiased estimates of p(x | theta) by a particle filter over the states; their logarithms differ from call to call"
)


@final
class SwitchingLinear(Collapsed):
    """Distribution over ``x`` (N, T, D) for statistics of the transitions, the dynamics and the emission.

    Parameters
    ----------
    log_initial : (K,), need not be normalised (variational Bayes passes expected logarithms).
    log_transition : (K, K), from row to column.
    dynamics : regression of each of K states on (h, u, 1).
    emission : regression on (h, u, 1), one for all states or one for each.
    s_dynamics, s_emission : their natural statistics.
    shape : (N, T) of what :meth:`sample` draws.
    u : inputs (N, T, U), or (N, U) for ones that stay the same; of `forecast` with a row for each step ahead too.
    """

    support = constraints.independent(constraints.real, 2)

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
        self.log_initial, self.log_transition = log_initial, log_transition
        self.dynamics, self.emission = dynamics, emission
        self.s_dynamics, self.s_emission, self.u = s_dynamics, s_emission, u
        super().__init__(torch.Size(shape[:1]), torch.Size([shape[1], emission.outputs]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: TorchDistribution | None = None) -> "SwitchingLinear":
        if tuple(batch_shape) != tuple(self.batch_shape):
            raise DataError(
                f"SwitchingLinear: one batch dimension of {tuple(self.batch_shape)} sequences, got {tuple(batch_shape)}"
            )
        return self

    @property
    def apart(self) -> bool:
        return not self.emission.full

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, GaussianBlock]:
        return {"h": GaussianBlock(x.shape[1], self.dynamics.outputs, x)}

    def start(self, x: Float[Tensor, "N T D"]) -> Local:
        """Posterior of h given probabilities of the states along paths; equal ones in a traced graph.

        From a standard normal h the updates end tens of nats lower.
        """
        block, K = self.blocks(x)["h"], len(self.log_initial)
        found = self._paths(x) if is_eager() else None
        weights = 1 / K if found is None else found[0].smoothed()[0]

        def energy(own: Natural) -> Tensor:
            return self.rest(x, {"h": own}).sum() + (weights * self._potential(x, own)).sum()

        return {"h": slope(energy, block.start(len(x)))}

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        """The chain of states, given expected statistics of h."""
        return discrete_chain(self.log_initial, self.log_transition, self._potential(x, m["h"]), sequence_lengths(x))

    def _potential(self, x: Tensor, m: Natural) -> Float[Tensor, "N T K"]:
        moves = self._moves(x, m)
        return moves if self.emission.states is None else moves + self._sights(x, m)

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log density of first states and of an emission that does not switch; steps past the end are standard
        normal.
        """
        L, mean = self.dynamics.outputs, m["h"]["mean"]
        alone = 1 - pad(exists(x)[:, 1:].to(mean), (1, 0))
        square = m["h"]["outer"].diagonal(dim1=-2, dim2=-1).sum(-1)
        total = -0.5 * (alone * (square + L * LOG_2PI)).sum(-1)
        return total if self.emission.states is not None else total + self._sights(x, m["h"])[..., 0].sum(-1)

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

    def latents(self, x: Float[Tensor, "N T D"]) -> "SwitchingLinearLatents":
        """Posterior of the states from their paths; from the one Gaussian block where there is one state."""
        found = self._paths(x)
        if found is None:
            local = self.settle(x)
            mean, _ = self.blocks(x)["h"].solved(local["h"])
            return SwitchingLinearLatents(self, x, self.summed(x, {"h": mean}).marginals, mean["mean"])
        marginals, paths = found[0].smoothed()
        block = self.blocks(x)["h"]
        each = [block.chain(self._best(x, {"h": block.start(len(x))}, "h", z)).mean for z in paths]
        return SwitchingLinearLatents(self, x, marginals, torch.stack(each).mean(0))

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given ``h`` (and ``z``); trailing NaN stays."""
        regressors = torch.cat([values["h"], self._known(values["h"])], -1)
        drawn = draw_frames(*self._sight(values["z"]), x, regressors, diagonal=not self.emission.full)
        return torch.where(exists(x)[..., None], drawn, x)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed)."""
        N, T, D = x.shape
        end, values = sequence_lengths(x), self.draw(x)
        row, last = torch.arange(N, device=x.device), (end - 1).clamp_min(0)
        h, z = values["h"][row, last], values["z"][row, last].clamp_min(0)
        known = known_ahead("SwitchingLinear", self.u, h, end, T, horizon)
        following = torch.where((end > 0)[:, None], self.log_transition.log_softmax(-1)[z], self._log_first())
        return self._onwards(h, following, known, end == 0, D)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh states, and their observations."""
        count = torch.Size(sample_shape).numel()
        (N,), (T, D) = self.batch_shape, self.event_shape
        start = self.log_initial.new_zeros(N, self.dynamics.outputs)
        known, fresh = self._known(start.new_empty(N, T, 0)), torch.ones(N, dtype=torch.bool, device=start.device)
        drawn = [self._onwards(start, self._log_first(), known, fresh, D) for _ in range(count)]
        return torch.stack(drawn).reshape(*sample_shape, N, T, D)

    def _log_first(self) -> Float[Tensor, " K"]:
        return self.log_initial.log_softmax(-1)

    def _onwards(
        self, h: Float[Tensor, "N L"], log_first: Float[Tensor, "*#N K"], known: Tensor, fresh: Tensor, D: int
    ) -> Float[Tensor, "N H D"]:
        """Draw the steps behind states ``h``, from the first one on where a row is ``fresh``: z, h, and what they show.

        ``log_first`` are log probabilities of the state of the first of them.
        """
        N, H = known.shape[:2]
        potential = h.new_zeros(N, H, len(self.log_initial))
        z = discrete_chain(log_first, self.log_transition.log_softmax(-1), potential).sample(1)[0]
        A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
        white = torch.randn(N, H, h.shape[-1], 1, dtype=h.dtype, device=h.device)
        noise = torch.linalg.solve_triangular(torch.linalg.cholesky(precision).mT[z], white, upper=True)[..., 0]
        states = torch.cat([draw_onwards(A[z], noise, h, known, fresh), known], -1)
        return draw_frames(*self._sight(z), h.new_full((N, H, D), torch.nan), states, diagonal=not self.emission.full)

    def _sight(self, z: Int[Tensor, "N T"]) -> tuple[Tensor, Tensor]:
        """Coefficients and precision of the emission, of each step where it switches."""
        A, precision = self.emission.mean_and_precision(self.s_emission)
        return (A, precision) if self.emission.states is None else (A[z.clamp_min(0)], precision[z.clamp_min(0)])

    def _known(self, like: Tensor) -> Float[Tensor, "N T J"]:
        return known_regressors(self.u, like)

    def _moves(self, x: Tensor, m: Natural) -> Float[Tensor, "N T K"]:
        r"""Expected log density of each step given the one before, in each state: linear in the moments of both.

        .. math:: \langle P, h_t h_t' \rangle + \langle M, h_t r_t' \rangle + \langle Q, r_t r_t' \rangle + c, \quad
            r_t = [h_{t-1}; u_t; 1]
        """
        L, mean, outer = self.dynamics.outputs, m["mean"], m["outer"]
        P, M, Q, constant = self.dynamics.form(self.s_dynamics)
        known = self._known(mean[..., :0])[:, 1:]
        products = [
            (outer[:, 1:], P),
            (m["cross"], M[..., :L].mT),
            (known[..., :, None] * mean[:, 1:, None, :], M[..., L:].mT),
            (outer[:, :-1], Q[..., :L, :L]),
            (known[..., :, None] * mean[:, :-1, None, :], 2 * Q[..., L:, :L]),
            (known[..., :, None] * known[..., None, :], Q[..., L:, L:]),
        ]
        moments = torch.cat([moment.flatten(-2) for moment, _ in products], -1)
        weights = torch.cat([weight.flatten(-2) for _, weight in products], -1)
        score = moments @ weights.mT + constant
        return pad(score, (0, 0, 1, 0)) * exists(x)[..., None].to(score)

    def _sights(self, x: Tensor, m: Natural) -> Float[Tensor, "N T K1"]:
        """Expected log density of what is seen of each frame, in each state that has an emission of its own."""
        outer, slope, own = self._seen(x, self._known(m["mean"][..., :0]))
        square = (
            (outer * m["outer"]).sum((-1, -2)) if outer.dim() > 3 else m["outer"].flatten(-2) @ outer.flatten(-2).mT
        )
        square = square.movedim(0, -1) if outer.dim() > 3 else square
        return square + ((slope * m["mean"]).sum(-1) + own).movedim(0, -1)

    def _seen(self, x: Tensor, known: Tensor) -> tuple[Tensor, Float[Tensor, "K1 N T L"], Float[Tensor, "K1 N T"]]:
        """Coefficients of h h' (K1, L, L) or (K1, N, T, L, L), of h, and the rest; one of all states comes first."""
        s, L = self.s_emission, self.dynamics.outputs
        if self.emission.states is None:
            s = {name: value[None] for name, value in s.items()}
        each = torch.func.vmap(lambda own: seen_frames(self.emission, own, x, known, L))
        outer, slope, rest = each(s)
        return outer, slope, rest.expand(*slope.shape[:-1])

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


@final
@dataclass(frozen=True)
class SwitchingLinearLatents:
    """Posterior of the states of a batch of sequences."""

    system: SwitchingLinear
    x: Float[Tensor, "N T D"]
    probabilities: Float[Tensor, "N T K"]
    mean: Float[Tensor, "N T L"]

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "z": ("sequence", "time", "state"),
        "z_mode": ("sequence", "time"),
        "z_draw": ("sequence", "time"),
        "h": ("sequence", "time", "latent"),
        "h_draw": ("sequence", "time", "latent"),
    }

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``z``: probability of each state at each step; ``h``: mean of the continuous states; NaN past the end."""
        there = exists(self.x)[..., None]
        found = {"z": self.probabilities, "h": self.mean}
        return {name: torch.where(there, value, torch.nan) for name, value in found.items()}

    @property
    def mode(self) -> dict[str, Tensor]:
        """``z_mode``: the most probable state of each step; -1 past the end of a sequence."""
        return {"z_mode": torch.where(exists(self.x), self.probabilities.argmax(-1), -1)}

    def sample(self) -> dict[str, Tensor]:
        """``z_draw``, ``h_draw``: one joint draw; -1 and NaN past the end of a sequence."""
        values, there = self.system.draw(self.x), exists(self.x)
        return {
            "z_draw": torch.where(there, values["z"], -1),
            "h_draw": torch.where(there[..., None], values["h"], torch.nan),
        }
