r"""Guides by name: distributions with parameters over the continuous latent sites of a program.

All draw one flat unconstrained vector :math:`v` with density :math:`q(v)`; a site is a differentiable bijection of its
part of it, whose Jacobian enters the density of the site.

References: Kucukelbir et al. (2017) for the first two; Ong, Nott & Smith (2018); Tierney & Kadane (1986); Kingma et al.
(2016) and Jones & Pewsey (2009) for the flow.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from ppgen.constants import LOG_2PI
from ppgen.errors import DataError, FitError
from ppgen.programs.sites import Site

__all__ = ["NAMES", "FlatGuide", "FullRank", "Laplace", "LowRank", "NormalGuide", "Point", "named_guide"]

Sites = Mapping[str, Site]

FIRST_SPREAD, FIRST_SCALE = 0.1, 0.1  # of the unconstrained means at the start, and of each draw around them
EDGE = 20.0  # unconstrained number that stands for a draw of the prior on the edge of its support
LARGEST_SIZE = {"full_rank": 5000, "laplace": 5000}  # numbers whose covariance is a matrix in memory
STEP, NEWTON_STEPS, NEWTON_TOLERANCE, ROWS_AT_ONCE = 1e-4, 20, 1e-9, 64


def named_guide(name: str, sites: Sites) -> "FlatGuide":
    """A guide of one of the kinds in ``NAMES`` for ``sites``, which must be all latent sites of a program.

    Raises
    ------
    DataError : an unknown name, or more numbers than the kind is made for.
    """
    if name not in NAMES:
        raise DataError(f"svi: guide must be one of {NAMES}, a function or a module, got {name!r}")
    size = sum(site.size for site in sites.values())
    if size > LARGEST_SIZE.get(name, size):
        raise DataError(f'svi: guide="{name}" takes at most {LARGEST_SIZE[name]} numbers, got {size}; use "low_rank"')
    return KINDS[name](sites)


class FlatGuide(nn.Module, ABC):
    """A guide that draws all sites as one unconstrained vector (P,), made of ``noise_size`` standard normal numbers."""

    def __init__(self, sites: Sites) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.size = sum(site.size for site in sites.values())
        self.noise_size = self.size
        self.noise: Tensor | None = None
        self.centre = nn.Parameter(_first(torch.Size([self.size])))

    @contextmanager
    def with_noise(self, noise: Float[Tensor, " W"]) -> Iterator[None]:
        """Make the draws inside the block from these standard normal numbers."""
        self.noise = noise
        try:
            yield
        finally:
            self.noise = None

    def standard(self) -> Float[Tensor, " W"]:
        """The standard normal numbers of a draw: those given, or new ones."""
        if self.noise is not None:
            return self.noise
        return torch.randn(self.noise_size, **_like(self.centre))

    def site_at(self, index: int) -> str:
        """The site that an entry of the vector belongs to."""
        return next(name for name, site in self.sites.items() if site.entries.start <= index < site.entries.stop)

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Move the centre to values of the sites."""
        for name, site in self.sites.items():
            free = site.transform.inv(values[name]).reshape(-1)
            self.centre[site.entries] = free.nan_to_num(0.0, EDGE, -EDGE)

    @abstractmethod
    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        """A vector and the log density of drawing it."""

    def forward(self, *_: object, **__: object) -> None:
        """Draw every site."""
        v, log_q = self.draw()
        pyro.sample("_unconstrained", dist.Delta(v, log_q, event_dim=1), infer={"is_auxiliary": True})
        for site in self.sites.values():
            _sample(site, v[site.entries].reshape(site.free_shape))


class NormalGuide(FlatGuide, ABC):
    r"""A normal distribution of the unconstrained vector, in a frame.

    :math:`v = o + U w` with :math:`w` normal: the parameters say how :math:`w` differs from a standard normal. The
    frame :math:`(o, U)` is no parameter; `settle` moves it to the present distribution, so that parameters are in units
    of the guide's own widths.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.log_scale = nn.Parameter(torch.full((self.size,), math.log(FIRST_SCALE)))
        self.origin: Tensor
        self.unit: Tensor
        self.register_buffer("origin", torch.zeros(self.size))

    @property
    def frame(self) -> dict[str, Tensor]:
        """The frame by the names of its buffers."""
        return {name: value for name, value in self.named_buffers() if name in ("origin", "unit")}

    @abstractmethod
    def settle(self) -> None:
        """Move the frame to the present distribution, which does not change."""


@final
class MeanField(NormalGuide):
    """Independent normals on the unconstrained scale; the site's own distribution where that is its scale."""

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.register_buffer("unit", torch.ones(self.size))

    def forward(self, *_: object, **__: object) -> None:
        """Draw every site."""
        noise = self.standard()
        centre, scale = self.origin + self.unit * self.centre, self.unit * self.log_scale.exp()
        for name, site in self.sites.items():
            mine, shape = site.entries, site.free_shape
            normal = _NormalOf(centre[mine].reshape(shape), scale[mine].reshape(shape), noise[mine].reshape(shape))
            if _is_identity(site):
                pyro.sample(name, normal.to_event(site.event_dim))
            else:
                auxiliary = normal.to_event(len(shape))
                _sample(site, pyro.sample(f"{name}_free", auxiliary, infer={"is_auxiliary": True}))

    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        noise, scale = self.standard(), self.unit * self.log_scale.exp()
        return self.origin + self.unit * self.centre + scale * noise, _standard(noise) - scale.log().sum()

    @torch.no_grad()
    def settle(self) -> None:
        self.origin += self.unit * self.centre
        self.unit *= self.log_scale.exp()
        self.centre.zero_()
        self.log_scale.zero_()


@final
class FullRank(NormalGuide):
    """A normal with every correlation."""

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.lower = nn.Parameter(torch.zeros(self.size, self.size))  # of the factor, its rows in units of the scale
        self.register_buffer("unit", torch.eye(self.size))

    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        noise = self.standard()
        w = self.centre + self.log_scale.exp() * (noise + self.lower.tril(-1) @ noise)
        return self.origin + self.unit @ w, _standard(noise) - self.log_scale.sum() - self.unit.diagonal().log().sum()

    @torch.no_grad()
    def settle(self) -> None:
        factor = self.log_scale.exp()[:, None] * (self.lower.tril(-1) + torch.eye(self.size, **_like(self.lower)))
        self.origin += self.unit @ self.centre
        self.unit.copy_(self.unit @ factor)
        for parameter in (self.centre, self.log_scale, self.lower):
            parameter.zero_()


@final
class LowRank(NormalGuide):
    """A normal whose covariance is a diagonal plus a matrix of rank about the square root of the size."""

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        rank = max(1, round(self.size**0.5))
        self.factor = nn.Parameter(torch.randn(self.size, rank) * FIRST_SCALE / rank)
        self.register_buffer("unit", torch.ones(self.size))
        self.noise_size = self.size + rank

    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        own, shared = self.standard().split([self.size, self.factor.shape[1]])
        w = self.centre + self.factor @ shared + self.log_scale.exp() * own
        return self.origin + self.unit * w, self._log_prob(w) - self.unit.log().sum()

    def _log_prob(self, w: Float[Tensor, " P"]) -> Tensor:
        """Log density of ``w``; over given numbers its mean, minus the entropy, which needs no solve for each draw."""
        if self.noise is None:
            normal = dist.LowRankMultivariateNormal(self.centre, self.factor, (2 * self.log_scale).exp())
            return normal.log_prob(w)
        shared = (-self.log_scale).exp()[:, None] * self.factor
        capacity = torch.eye(shared.shape[1], **_like(shared)) + shared.T @ shared
        log_det = 2 * self.log_scale.sum() + 2 * torch.linalg.cholesky(capacity).diagonal().log().sum()
        return -0.5 * (log_det + self.size * (1 + LOG_2PI))

    @torch.no_grad()
    def settle(self) -> None:
        width = ((2 * self.log_scale).exp() + self.factor.square().sum(-1)).sqrt()
        self.origin += self.unit * self.centre
        self.unit *= width
        self.centre.zero_()
        self.log_scale.sub_(width.log())
        self.factor.div_(width[:, None])


@final
class Laplace(FlatGuide):
    """The mode on the unconstrained scale while it is trained; then a normal with the curvature there."""

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.register_buffer("root", None)
        self.noise_size = 0

    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        if self.root is None:
            return self.centre, self.centre.new_zeros(())
        noise = torch.randn(self.size, **_like(self.root))
        log_q = _standard(noise) - self.root.diagonal().log().sum()
        return self.centre + self.root @ noise, log_q

    def finish(self, gradient: Callable[[Tensor], Tensor]) -> None:
        """Go to the very mode by Newton steps and take the curvature there.

        Parameters
        ----------
        gradient : gradient of the log density, (C, P) -> (C, P).

        Raises
        ------
        FitError : the curvature is not that of a maximum.
        """
        v = self.centre.detach().clone()
        for _ in range(NEWTON_STEPS):
            root = self._root(gradient, v)
            move = root @ (root.T @ gradient(v[None])[0])
            v = v + move
            if float(move.abs().max()) <= NEWTON_TOLERANCE * (1 + float(v.abs().max())):
                break
        with torch.no_grad():
            self.centre.copy_(v)
        self.root = self._root(gradient, v)

    def _root(self, gradient: Callable[[Tensor], Tensor], v: Float[Tensor, " P"]) -> Float[Tensor, "P P"]:
        """Factor of the inverse of minus the Hessian, by central differences of the gradient."""
        size = STEP * (1 + v.abs())
        columns = []
        for part in torch.arange(self.size).split(ROWS_AT_ONCE):
            shift = torch.zeros(len(part), self.size, dtype=v.dtype, device=v.device)
            shift[torch.arange(len(part)), part] = size[part]
            columns.append((gradient(v + shift) - gradient(v - shift)) / (2 * size[part, None]))
        hessian = torch.cat(columns)
        precision = -(hessian + hessian.T) / 2
        factor, failed = torch.linalg.cholesky_ex(precision)
        if int(failed) or not bool(torch.isfinite(factor).all()):
            site = self.site_at(max(int(failed) - 1, 0))
            raise FitError(
                f"svi: the curvature at the mode must be that of a maximum, it is not (site {site!r}); take more "
                'steps, tighten the priors, or use guide="mean_field"'
            )
        covariance: Tensor = torch.cholesky_inverse(factor)
        return torch.linalg.cholesky(covariance)


@final
class Point(FlatGuide):
    """One value of every site, where the density of the sites in their own units is largest: maximum a posteriori.

    Unlike the mode of `Laplace`, which is that of the unconstrained vector; Pyro's ``AutoDelta`` means the same.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.noise_size = 0

    def forward(self, *_: object, **__: object) -> None:
        """Put every site at its value."""
        v = self.draw()[0]
        for name, site in self.sites.items():
            value = site.transform(v[site.entries].reshape(site.free_shape))
            pyro.sample(name, dist.Delta(value, event_dim=value.ndim))

    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        return self.centre, self.centre.new_zeros(())

    def farthest(self) -> str:
        """Say which site is nearest to the edge of its support, in words for a message; empty if none has one."""
        bounded = {name: site for name, site in self.sites.items() if not _is_identity(site)}
        out = {name: float(self.centre.detach()[site.entries].abs().max()) for name, site in bounded.items()}
        return f", and site {max(out, key=lambda name: out[name])!r} is far out" if out else ""


@final
class Flow(FlatGuide):
    """A normal bent number by number and by two autoregressive layers in opposite orders, then moved and scaled."""

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.log_scale = nn.Parameter(torch.full((self.size,), math.log(FIRST_SCALE)))
        layers: list[nn.Module] = [_Bend(self.size)]
        orders: list[Any] = [torch.arange(self.size), torch.arange(self.size).flip(0)] if self.size > 1 else []
        for order in orders:
            net = AutoRegressiveNN(self.size, [max(16, 2 * self.size)] * 2, permutation=order)
            layers += [AffineAutoregressive(net, stable=True), _Bend(self.size)]
        self.layers = nn.ModuleList(layers)

    def draw(self) -> tuple[Float[Tensor, " P"], Tensor]:
        noise = self.standard()
        y, log_q = noise, _standard(noise)
        for layer in self.layers:
            bent: Any = layer
            x, y = y, bent(y)
            log_q = log_q - bent.log_abs_det_jacobian(x, y).sum()
        return self.centre + self.log_scale.exp() * y, log_q - self.log_scale.sum()


@final
class _Bend(nn.Module):
    """``sinh(tail * asinh(x) + skew)`` of each number (Jones & Pewsey 2009)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.skew, self.log_tail = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The bent numbers."""
        return self._angle(x).sinh()

    def log_abs_det_jacobian(self, x: Float[Tensor, " P"], _: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Log derivative of each."""
        angle = self._angle(x).abs()
        log_cosh = angle + torch.log1p((-2 * angle).exp()) - math.log(2)
        return log_cosh + self.log_tail - 0.5 * torch.log1p(x.square())

    def _angle(self, x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        return self.log_tail.exp() * x.asinh() + self.skew


def _sample(site: Site, free: Tensor) -> None:
    """Sample a site at its value; its density is what the change of units leaves of the vector's."""
    value = site.transform(free)
    jacobian = site.transform.log_abs_det_jacobian(free, value).sum()
    pyro.sample(site.name, dist.Delta(value, -jacobian, event_dim=value.ndim))


@final
class _NormalOf(dist.Normal):
    """A normal distribution whose draw is made of given standard normal numbers."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.noise = noise

    def rsample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401 (torch's signature)
        return self.loc + self.scale * self.noise


def _like(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "device": tensor.device}


def _is_identity(site: Site) -> bool:
    if site.shape != site.free_shape:
        return False
    free = torch.linspace(-1.0, 1.0, max(site.size, 2)).reshape(-1)[: site.size].reshape(site.free_shape)
    return torch.equal(site.transform(free), free)


def _first(shape: torch.Size) -> Tensor:
    return torch.randn(shape) * FIRST_SPREAD


def _standard(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square().sum() + noise.numel() * LOG_2PI)


KINDS: dict[str, Callable[[Sites], FlatGuide]] = {
    "mean_field": MeanField,
    "full_rank": FullRank,
    "low_rank": LowRank,
    "laplace": Laplace,
    "flow": Flow,
    "map": Point,
}

NAMES = tuple(KINDS)
