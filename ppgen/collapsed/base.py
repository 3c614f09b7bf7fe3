r"""Distributions of data whose latents are summed out, or held in blocks that are exact given the rest.

A `Collapsed` distribution says its log joint density once, as :meth:`Collapsed.energy`: the expectation over the held
blocks, linear in their statistics ``m``, with everything else summed out. Then the best posterior of block b has
natural parameters :math:`\eta_b = \partial\, \text{energy} / \partial m_b`, and

.. math:: \text{evidence} = \text{energy}(m)
          + \sum_b \big( A_b(\eta_b) - \langle \eta_b, m_b \rangle \big) \le \log p(x)

which is the log-density itself where nothing is held, or one block is and nothing else is summed out. References:
Johnson et al. (2016), §4; Wainwright & Jordan (2008), §5.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppgen.collapsed.block import Block
from ppgen.distributions.shape import Shape
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.messages import Mixture
from ppgen.messages._compiled import is_eager
from ppgen.messages.discrete.chain import DiscreteChain

__all__ = ["Collapsed", "Latents", "Local", "Posterior", "SummedOut", "slope", "unexpanded"]

Own = TypeVar("Own", bound=TorchDistribution)
Local = dict[str, Natural]
"""Block -> natural parameters of its posterior."""

GIBBS = 30  # sweeps behind a draw of blocks that are not exact at once


@final
class Posterior(dict[str, Tensor]):
    """Natural parameters of a block that keep what the block found from them, so that it is found once."""

    found: tuple[Natural, Tensor] | None = None


@runtime_checkable
class Latents(Protocol):
    """Posterior of what was summed out: name -> tensor, with the axes of each name in ``dims``."""

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Name -> its axes."""

    @property
    def marginals(self) -> dict[str, Tensor]:
        """Probabilities or means."""

    @property
    def mode(self) -> dict[str, Tensor]:
        """Most probable values."""

    def sample(self) -> dict[str, Tensor]:
        """One joint draw."""


@runtime_checkable
class SummedOut(Protocol):
    """What answers need of a distribution over batches of observations, its latents summed out.

    Of a time series it may also have ``log_prob_steps(x)``: the log-density of each step given those before it, (N, T),
    zero past the end of a sequence, which sum to ``log_prob(x)``; and ``forecast(x, horizon)``: one draw of the
    ``horizon`` steps after each row's last observation, (N, horizon, ...).
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """Log evidence of each row of ``x``, NaN integrated out."""

    def latents(self, x: Tensor) -> Latents:
        """Posterior of what was summed out."""

    def impute(self, x: Tensor) -> Tensor:
        """``x`` with NaN replaced by one draw given the rest."""

    def sample(self) -> Tensor:
        """Replicated data."""


class Collapsed(TorchDistribution, ABC):
    """A distribution over data ``x`` (N, ...) with latents of each row.

    A subclass says what it holds (`blocks`), what it sums out (`summed`) and what is left (`rest`), and draws missing
    entries given drawn latents (`fill`). The discrete latents that are summed out are called ``z``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False
    sweeps: ClassVar[int] = 30
    """Updates of blocks that are not exact at once."""

    @property
    def apart(self) -> bool:
        """True if entries do not depend on each other given the latents; False where a distribution does not say."""
        return False

    def blocks(self, x: Tensor) -> Mapping[str, Block]:
        """Latents that are held, each exact given the others; none by default."""
        return {}

    def summed(self, x: Tensor, m: Mapping[str, Natural]) -> DiscreteChain | Mixture | None:
        """What is summed out exactly, given the statistics ``m`` of the blocks; nothing by default."""
        return None

    def rest(self, x: Tensor, m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log density of all else, linear in the statistics of each block; zero by default."""
        return x.new_zeros(len(x))

    @abstractmethod
    def fill(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """``x`` with its NaN entries drawn given drawn latents; the rest bit for bit."""

    def energy(self, x: Tensor, m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Expected log joint density of each row, given the statistics of the blocks."""
        chain = self.summed(x, m)
        return self.rest(x, m) if chain is None else self.rest(x, m) + chain.log_normalizer

    def start(self, x: Tensor) -> Local:
        """Posteriors of the blocks to begin from, by default what each begins from by itself."""
        return {b: block.start(len(x)) for b, block in self.blocks(x).items()}

    def settle(self, x: Tensor, local: Local | None = None, sweeps: int | None = None) -> Local:
        """Posteriors of the blocks, each updated in turn, from ``local`` if there is one. No gradient flows.

        A block alone is exact after one update, for the energy is linear in it.
        """
        blocks = self.blocks(x)
        with torch.no_grad():
            found = {b: _kept(eta) for b, eta in (local or self.start(x)).items()}
            if self.exact(x):
                return {b: self._best(x, found, b) for b in blocks}
            for _ in range(self.sweeps if sweeps is None else sweeps):
                for b in blocks:
                    m = {name: _solved(block, found[name])[0] for name, block in blocks.items()}
                    found[b] = _kept(self._best(x, m, b))
        return dict(found)

    def evidence(self, x: Tensor, local: Local) -> Float[Tensor, " N"]:
        """Lower bound of the log density of each row, for given posteriors of the blocks; exact where that can be."""
        blocks = self.blocks(x)
        solved = {b: _solved(block, local[b]) for b, block in blocks.items()}
        entropy = [value - blocks[b].inner(local[b], m) for b, (m, value) in solved.items()]
        return sum(entropy, self.energy(x, {b: m for b, (m, _) in solved.items()}))

    def log_prob(self, x: Tensor) -> Float[Tensor, " N"]:
        """Log density of each row, or its lower bound."""
        return self.evidence(x, self.settle(x))

    def joint(self, x: Tensor, values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log joint density of each row and of values of its latents, up to a constant.

        Its gradient with respect to the statistics of the parameters is what one update takes from these values.
        Latents that are not given are settled, or summed out.
        """
        m = {b: block.statistic(values[b]) for b, block in self.blocks(x).items() if b in values}
        missing = {b: block for b, block in self.blocks(x).items() if b not in values}
        if missing:
            local = self.settle(x)
            m |= {b: _solved(block, local[b])[0] for b, block in missing.items()}
        chain = self.summed(x, m)
        if chain is None:
            return self.rest(x, m)
        return self.rest(x, m) + (chain.score(values["z"]) if "z" in values else chain.log_normalizer)

    def draw(self, x: Tensor) -> dict[str, Tensor]:
        """One joint draw of the latents of every row given ``x``; Gibbs sweeps from `settle` where that is a bound."""
        blocks = self.blocks(x)
        with torch.no_grad():
            local = self.settle(x)
            values = {b: block.sample(local[b]) for b, block in blocks.items()}
            exact = self.exact(x)
            for _ in range(0 if exact else GIBBS):
                values = self.sweep(x, values)
            chain = self.summed(x, {b: block.statistic(values[b]) for b, block in blocks.items()})
            return values if chain is None else {**values, "z": chain.sample(1)[0].clamp_min(0)}

    def sweep(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw every latent once given the others (Gibbs)."""
        blocks = self.blocks(x)
        with torch.no_grad():
            m = {b: block.statistic(values[b]) for b, block in blocks.items()}
            chain = self.summed(x, m)
            z = None if chain is None else chain.sample(1)[0].clamp_min(0)
            drawn = dict(values) if z is None else {**values, "z": z}
            for b, block in blocks.items():
                drawn[b] = block.sample(self._best(x, m, b, z))
                m[b] = block.statistic(drawn[b])
        return drawn

    def impute(self, x: Tensor) -> Tensor:
        """``x`` with NaN replaced by one draw given the rest."""
        return self.fill(x, self.draw(x)) if torch.isnan(x).any() else x.clone()

    def exact(self, x: Tensor) -> bool:
        """Whether `log_prob` is the log density itself: no block is held, or one and nothing else is summed out."""
        blocks = self.blocks(x)
        if len(blocks) != 1:
            return not blocks
        return self.summed(x, {b: block.start(len(x)) for b, block in blocks.items()}) is None

    def _best(self, x: Tensor, m: Mapping[str, Natural], b: str, z: Tensor | None = None) -> Natural:
        """Natural parameters of block ``b`` given the others, and given ``z`` or with it summed out."""

        def energy(own: Natural) -> Tensor:
            given = {**m, b: own}
            if z is None:
                return self.energy(x, given).sum()
            chain = self.summed(x, given)
            return (self.rest(x, given) + (0 if chain is None else chain.score(z))).sum()

        return slope(energy, m[b])


def slope(function: Callable[[Natural], Tensor], at: Natural) -> Natural:
    """Gradient of a number, by plain autograd where nothing is mapped or traced, which takes less time."""
    if not is_eager():
        found: Natural = torch.func.grad(function)(at)
        return found
    with torch.enable_grad():
        own = {name: value.detach().requires_grad_() for name, value in at.items()}
        slopes = torch.autograd.grad(function(own), list(own.values()), materialize_grads=True)
    return dict(zip(own, slopes, strict=True))


def _kept(eta: Natural) -> Posterior:
    return eta if isinstance(eta, Posterior) else Posterior(eta)


def _solved(block: Block, eta: Natural) -> tuple[Natural, Tensor]:
    """Expected statistics and log-normaliser, found before or now."""
    if not isinstance(eta, Posterior):
        return block.solved(eta)
    if eta.found is None:
        eta.found = block.solved(eta)
    return eta.found


def unexpanded(own: Own, batch_shape: Shape) -> Own:
    """The distribution itself, which has a batch of its own size alone."""
    if tuple(batch_shape) != tuple(own.batch_shape):
        raise DataError(
            f"{type(own).__name__}: must have one batch dimension of {tuple(own.batch_shape)} sequences, got "
            f"{tuple(batch_shape)}"
        )
    return own
