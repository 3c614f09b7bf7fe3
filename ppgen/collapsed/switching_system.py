r"""Systems whose linear dynamics switch between states: what all of them share.

.. math::
    h_1 \sim \mathcal N(0, I), \quad h_t \sim \mathcal N(A_{z_t} [h_{t-1}; u_t; 1], Q_{z_t}), \qquad
    x_t \sim \mathcal N(C [h_t; u_t; 1], R)

where C and R may depend on :math:`z_t` too. How the states z follow each other is what a subclass says. Given h the
states are a chain and are summed out; given z the continuous states are one Gaussian block.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import pad

from ppgen.collapsed.base import Collapsed, Local, slope, unexpanded
from ppgen.collapsed.block import GaussianBlock
from ppgen.collapsed.linear_frames import draw_frames, known_ahead, known_regressors, seen_frames
from ppgen.constants import LOG_2PI
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.families.family import Natural
from ppgen.families.regression import Regression
from ppgen.messages._compiled import is_eager

__all__ = ["SwitchingLatents", "SwitchingSystem"]


class SwitchingSystem(Collapsed):
    """Distribution over ``x`` (N, T, D) for statistics of the dynamics and the emission.

    Parameters
    ----------
    log_initial : (K,), need not be normalised (variational Bayes passes expected logarithms).
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
        dynamics: Regression,
        emission: Regression,
        s_dynamics: Natural,
        s_emission: Natural,
        shape: tuple[int, int],
        u: Tensor | None = None,
    ) -> None:
        self.log_initial, self.dynamics, self.emission = log_initial, dynamics, emission
        self.s_dynamics, self.s_emission, self.u = s_dynamics, s_emission, u
        super().__init__(torch.Size(shape[:1]), torch.Size([shape[1], emission.outputs]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: TorchDistribution | None = None) -> "SwitchingSystem":
        return unexpanded(self, batch_shape)

    @property
    def apart(self) -> bool:
        return not self.emission.full

    def blocks(self, x: Float[Tensor, "N T D"]) -> Mapping[str, GaussianBlock]:
        return {"h": GaussianBlock(x.shape[1], self.dynamics.outputs, x)}

    def start(self, x: Float[Tensor, "N T D"]) -> Local:
        """Posterior of h given probabilities of the states along paths; equal ones in a traced graph.

        From a standard normal h the updates end tens of nats lower.
        """
        block = self.blocks(x)["h"]
        weights = self._probabilities(x) if is_eager() else 1 / len(self.log_initial)

        def energy(own: Natural) -> Tensor:
            return self.rest(x, {"h": own}).sum() + (weights * self._potential(x, own)).sum()

        return {"h": slope(energy, block.start(len(x)))}

    @abstractmethod
    def _probabilities(self, x: Float[Tensor, "N T D"]) -> Tensor:
        """Probabilities of the states to start from."""

    def rest(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log density of first states and of an emission that does not switch; steps past the end are standard
        normal.
        """
        L, mean = self.dynamics.outputs, m["h"]["mean"]
        alone = 1 - pad(exists(x)[:, 1:].to(mean), (1, 0))
        square = m["h"]["outer"].diagonal(dim1=-2, dim2=-1).sum(-1)
        total = -0.5 * (alone * (square + L * LOG_2PI)).sum(-1)
        return total if self.emission.states is not None else total + self._sights(x, m["h"])[..., 0].sum(-1)

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given ``h`` (and ``z``); trailing NaN stays."""
        regressors = torch.cat([values["h"], self._known(values["h"])], -1)
        drawn = draw_frames(*self._sight(values["z"]), x, regressors, diagonal=not self.emission.full)
        return torch.where(exists(x)[..., None], drawn, x)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed)."""
        N, T, _ = x.shape
        end, values = sequence_lengths(x), self.draw(x)
        row, last = torch.arange(N, device=x.device), (end - 1).clamp_min(0)
        h, z = values["h"][row, last], values["z"][row, last].clamp_min(0)
        return self._frames(h, z, known_ahead(type(self).__name__, self.u, h, end, T, horizon), end == 0)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh states, and their observations."""
        count = torch.Size(sample_shape).numel()
        (N,), (T, D) = self.batch_shape, self.event_shape
        h = self.log_initial.new_zeros(N, self.dynamics.outputs)
        z = torch.zeros(N, dtype=torch.long, device=h.device)
        known, fresh = self._known(h.new_empty(N, T, 0)), torch.ones(N, dtype=torch.bool, device=h.device)
        drawn = [self._frames(h, z, known, fresh) for _ in range(count)]
        return torch.stack(drawn).reshape(*sample_shape, N, T, D)

    def _frames(
        self, h: Float[Tensor, "N L"], z: Int[Tensor, " N"], known: Float[Tensor, "N H J"], fresh: Tensor
    ) -> Float[Tensor, "N H D"]:
        """Draw the frames behind states h and z, from the first one on where a row is ``fresh``."""
        h, z = self._onwards(h, z, known, fresh)
        empty = h.new_full((*h.shape[:2], self.emission.outputs), torch.nan)
        return draw_frames(*self._sight(z), empty, torch.cat([h, known], -1), diagonal=not self.emission.full)

    @abstractmethod
    def _onwards(
        self, h: Float[Tensor, "N L"], z: Int[Tensor, " N"], known: Float[Tensor, "N H J"], fresh: Tensor
    ) -> tuple[Float[Tensor, "N H L"], Int[Tensor, "N H"]]:
        """Draw the states behind h and z, from the first one on where a row is ``fresh``."""

    def _steps(self, z: Int[Tensor, "N H"]) -> tuple[Float[Tensor, "N H L R"], Float[Tensor, "N H L"]]:
        """Coefficients of the moves into each step, and drawn noise of it."""
        A, precision = self.dynamics.mean_and_precision(self.s_dynamics)
        white = torch.randn(*z.shape, A.shape[-2], 1, dtype=A.dtype, device=A.device)
        root = torch.linalg.cholesky(precision).mT
        return A[z], torch.linalg.solve_triangular(root[z], white, upper=True)[..., 0]

    def _potential(self, x: Tensor, m: Natural) -> Float[Tensor, "N T K"]:
        moves = self._moves(x, m)
        return moves if self.emission.states is None else moves + self._sights(x, m)

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


@final
@dataclass(frozen=True)
class SwitchingLatents:
    """Posterior of the states of a batch of sequences."""

    system: "SwitchingSystem"
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
