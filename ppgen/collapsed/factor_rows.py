r"""Rows whose features share a few latent numbers: factor analysis and its kin, the latent numbers summed out.

.. math:: h_n \sim \mathcal N(0, I), \quad x_n^{(v)} \sim \mathcal N(C_v\,[h_n^{(v)}; 1], R_v)

for groups v of features (views), each of which sees some of the latent numbers, :math:`h^{(v)}`. They are one Gaussian
block and nothing else is latent, so ``log_prob`` is the exact evidence. An entry of ``x`` that is NaN is integrated
out.

References: Rubin & Thayer (1982); Bach & Jordan (2005); Ghahramani & Beal (2000) for the expected statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from pyro.distributions import constraints
from torch import Tensor

from ppgen.collapsed.base import Collapsed, Local
from ppgen.collapsed.block import GaussianBlock
from ppgen.collapsed.linear_frames import draw_frames, seen_frames
from ppgen.constants import LOG_2PI
from ppgen.distributions.shape import Shape
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.regression import Regression

__all__ = ["FactorRows", "FactorRowsLatents", "View"]


class View(NamedTuple):
    """A group of features: its regression on the latent numbers that it sees and a one.

    ``sees`` has a row for each of these, which picks it out of all of them.
    """

    emission: Regression
    sees: Float[Tensor, "L_v L"]


@final
@dataclass(frozen=True)
class FactorRowsLatents:
    """Posterior of the latent numbers of a batch of rows."""

    block: GaussianBlock
    eta: Natural

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"h": ("row", "latent"), "h_draw": ("row", "latent")}

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``h``: mean of each latent number; zero for a row of which nothing was observed."""
        return {"h": self.block.chain(self.eta).mean[:, 0]}

    @property
    def mode(self) -> dict[str, Tensor]:
        """Nothing beside the mean."""
        return {}

    def sample(self) -> dict[str, Tensor]:
        """``h_draw``: one draw of every row."""
        return {"h_draw": self.block.sample(self.eta)[:, 0]}


@final
class FactorRows(Collapsed):
    """Distribution over ``x`` (N, D), the views side by side, for statistics of their regressions.

    Parameters
    ----------
    views : the groups of features, in the order of their columns.
    statistics : natural statistics of each.
    rows : N of what :meth:`sample` draws.
    """

    support = constraints.independent(constraints.real, 1)

    def __init__(self, views: Sequence[View], statistics: Sequence[Natural], rows: int) -> None:
        self.views, self.statistics = tuple(views), tuple(statistics)
        self.widths = [view.emission.outputs for view in views]
        super().__init__(torch.Size([rows]), torch.Size([sum(self.widths)]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "FactorRows":
        if tuple(batch_shape) != tuple(self.batch_shape):
            own, came = tuple(self.batch_shape), tuple(batch_shape)
            raise DataError(f"FactorRows: must have one batch dimension of {own} rows, got {came}")
        return self

    @property
    def apart(self) -> bool:
        return not any(view.emission.full for view in self.views)

    def blocks(self, x: Float[Tensor, "N D"]) -> Mapping[str, GaussianBlock]:
        return {"h": GaussianBlock(1, self.views[0].sees.shape[-1], x)}

    def rest(self, x: Float[Tensor, "N D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log joint density of the features and the latent numbers."""
        eta, constant = self._natural(x)
        return constant + self.blocks(x)["h"].inner(eta, m["h"])

    def settle(self, x: Float[Tensor, "N D"], local: Local | None = None, sweeps: int | None = None) -> Local:
        """Natural parameters of the posterior of the latent numbers, which depend on no start."""
        with torch.no_grad():
            return {"h": self._natural(x)[0]}

    def evidence(self, x: Float[Tensor, "N D"], local: Local) -> Float[Tensor, " N"]:
        """Log density of each row, from the log-normaliser of its latent numbers alone."""
        eta, constant = self._natural(x)
        return constant + self.blocks(x)["h"].chain(eta).log_normalizer

    def log_prob(self, x: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Log density of each row."""
        return self.evidence(x, {})

    def exact(self, x: Tensor) -> bool:
        """Always: the latent numbers are one block, and nothing else is latent."""
        return True

    def latents(self, x: Float[Tensor, "N D"]) -> FactorRowsLatents:
        """Posterior of the latent numbers given ``x``."""
        return FactorRowsLatents(self.blocks(x)["h"], self.settle(x)["h"])

    def fill(self, x: Float[Tensor, "N D"], values: Mapping[str, Tensor]) -> Float[Tensor, "N D"]:
        """``x`` with its NaN entries drawn given the latent numbers ``h`` (N, 1, L)."""
        drawn = []
        for (emission, sees), s, part in zip(self.views, self.statistics, self._parts(x), strict=True):
            regressors = torch.cat([values["h"] @ sees.mT, torch.ones_like(values["h"][..., :1])], -1)
            drawn.append(
                draw_frames(*emission.mean_and_precision(s), part, regressors, diagonal=not emission.full)[:, 0]
            )
        return torch.cat(drawn, -1)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N D"]:
        """Replicated data: fresh latent numbers, and their features."""
        count, (N,), (D,) = torch.Size(sample_shape).numel(), self.batch_shape, self.event_shape
        empty = torch.full((count * N, D), torch.nan, dtype=torch.float64, device=self.statistics[0]["log_det"].device)
        h = torch.randn_like(empty[:, :1].expand(-1, self.views[0].sees.shape[-1]))
        return self.fill(empty, {"h": h[:, None]}).reshape(*sample_shape, N, D)

    def _parts(self, x: Tensor) -> list[Float[Tensor, "N 1 D_v"]]:
        return [part[:, None] for part in x.split(self.widths, -1)]

    def _natural(self, x: Tensor) -> tuple[Natural, Float[Tensor, " N"]]:
        """Coefficients of the latent numbers' statistics in the log joint density, and what does not depend on them.

        ``outer`` has one row where nothing is missing.
        """
        L = self.views[0].sees.shape[-1]
        eye = torch.eye(L, dtype=torch.float64, device=x.device)
        outer, mean, own = -0.5 * eye[None, None], x.new_zeros(1, 1, L), x.new_full((len(x),), -L / 2 * LOG_2PI)
        one = x.new_ones(len(x), 1, 1)
        for (emission, sees), s, part in zip(self.views, self.statistics, self._parts(x), strict=True):
            square, slope, each = seen_frames(emission, s, part, one, len(sees))
            outer, mean, own = outer + sees.mT @ square @ sees, mean + slope @ sees, own + each.sum(-1)
        return {"outer": outer, "cross": outer[:, :0], "mean": mean}, own
