"""Sites of a Pyro program: its continuous latent sites as slices of one vector, its discrete ones by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from ppgen.errors import DataError, FitError
from ppgen.programs.scores import check_sites

__all__ = [
    "MOST_ENUMERATED",
    "Last",
    "Program",
    "Site",
    "SitesAt",
    "anywhere",
    "check_enumerable",
    "is_discrete",
    "learn",
]

LARGEST_SUPPORT, MOST_ENUMERATED = 256, 16  # values of one discrete site, and number of such sites
RADIUS = 2.0  # half-width of the cube of unconstrained values that a program is run at to learn its sites

Program = Callable[..., Any]


@final
@dataclass(frozen=True, eq=False)
class Site:
    """One continuous latent site: its shapes in its own units and unconstrained, and its entries of the vector.

    ``event_dim`` is how many of its axes are one event of the program's distribution.
    """

    name: str
    shape: torch.Size
    free_shape: torch.Size
    entries: slice
    transform: Transform
    plates: Mapping[str, int]
    plate_dims: Mapping[str, int]
    event_dim: int

    @property
    def size(self) -> int:
        """Unconstrained numbers that it takes."""
        return self.free_shape.numel()


class Learned(NamedTuple):
    """Continuous sites, names of the discrete sites to enumerate, and how deep plates nest."""

    sites: dict[str, Site]
    enumerated: tuple[str, ...]
    depth: int


@final
class SitesAt(Messenger):
    """Fixes sites at given values; a latent site without one is refused, unless it is enumerated."""

    def __init__(self, values: Mapping[str, Tensor], enumerated: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.values, self.enumerated = values, enumerated

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if not _latent(msg) or msg["name"] in self.enumerated:
            return
        if msg["name"] not in self.values:
            raise FitError(
                f"density: every run must have the sites {sorted(self.values)}, got {msg['name']!r} too; "
                "a site must not depend on the value of another"
            )
        msg["value"] = self.values[msg["name"]]


@final
class Last(Messenger):
    """Remembers the name of the newest sample site."""

    name = ""

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        self.name = msg["name"]


@final
class _Anywhere(Messenger):
    """Gives each continuous latent site a value from the unconstrained cube, so that no prior need be drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Transform, Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if not _latent(msg) or is_discrete(msg["fn"]):
            return
        fn = msg["fn"]
        try:
            transform = biject_to(fn.support)
        except NotImplementedError as error:
            raise DataError(
                f"density: site {msg['name']!r} must have a support that a bijection reaches, got {fn.support} of "
                f"{type(fn).__name__}; write it as a transformed simpler site"
            ) from error
        free = (torch.rand(transform.inverse_shape(fn.shape())) * 2 - 1) * RADIUS
        self.found[msg["name"]] = (transform, free)
        msg["value"] = transform(free)


def learn(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, minibatch: bool = False) -> Learned:
    """Run ``program`` at two points and note what it samples.

    Parameters
    ----------
    minibatch : plates may be subsampled, if there is no continuous latent site in them.

    Raises
    ------
    DataError : no latent site, a site without a bijection, a large or infinite discrete one, a subsampled plate.
    FitError : sites, shapes or supports that differ between the two.
    """
    first, second = (_run(program, args, kwargs) for _ in range(2))
    _check_whole(first[0], minibatch=minibatch)
    _check_observed(first[0])
    sites, enumerated, depth = {}, [], 0
    start = 0
    for name, node in first[0].items():
        depth = max([depth, *(-frame.dim for frame in node["cond_indep_stack"] if frame.vectorized)])
        if not _latent(node):
            continue
        if is_discrete(node["fn"]):
            check_enumerable(name, node["fn"])
            enumerated.append(name)
            continue
        transform, free = first[1][name]
        frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
        plates, dims = ({frame.name: getattr(frame, key) for frame in frames} for key in ("size", "dim"))
        entries = slice(start, start + free.numel())
        shapes = node["value"].shape, free.shape
        sites[name] = Site(name, *shapes, entries, transform, plates, dims, node["fn"].event_dim)
        start += free.numel()
    _check_same(sites, first[1], second[1])
    if not sites:
        raise DataError(
            "density: the program must have a continuous latent site, found none; there is nothing to sample"
        )
    check_sites("density", first[0])
    if len(enumerated) > MOST_ENUMERATED:
        raise DataError(
            f"density: at most {MOST_ENUMERATED} discrete sites can be enumerated, got {len(enumerated)} "
            f"({enumerated[0]!r} and others); use a plate, or a distribution of ppgen.distributions that sums them out"
        )
    return Learned(sites, tuple(enumerated), depth)


def anywhere(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[Transform, Tensor]]]:
    """Sampled sites of a run at any place, the values of its continuous latents drawn evenly, and those values.

    Raises
    ------
    DataError : a site without a bijection, two sites of one name, or values of another shape than their distribution.
    """
    nodes, found = _run(program, args, kwargs)
    _check_observed(nodes)
    return nodes, found


def _run(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[Transform, Tensor]]]:
    try:
        with torch.no_grad(), poutine.trace() as run, _Anywhere() as anywhere:
            program(*args, **kwargs)
    except RuntimeError as error:
        if not str(error).startswith("Multiple sample sites"):
            raise
        name = str(error).split("'")[1]
        raise DataError(f"density: every site must have a name of its own, got {name!r} twice; rename one") from error
    nodes: dict[str, Any] = {name: node for name, node in run.trace.nodes.items() if node["type"] == "sample"}
    return nodes, anywhere.found


def _check_whole(nodes: Mapping[str, Any], *, minibatch: bool) -> None:
    """Refuse rows cut from a plate, but for a minibatch without latents of its own."""
    cut = {
        name: node for name, node in nodes.items() if site_is_subsample(node) and len(node["value"]) < node["fn"].size
    }
    for name, node in nodes.items():
        if minibatch and _latent(node) and not is_discrete(node["fn"]):
            inside = [frame.name for frame in node["cond_indep_stack"] if frame.name in cut]
            if inside:
                raise DataError(
                    f"svi: site {name!r} must have a guide of the model's own, for it has a value per row of the "
                    f"minibatch plate {inside[0]!r}; write a guide that computes its distribution from the data, or "
                    "use batch_size=None"
                )
        elif not minibatch and name in cut:
            raise DataError(
                f"density: plate {name!r} must run over all its {node['fn'].size} rows, got {len(node['value'])}; "
                "a sampler needs the whole density, use svi for minibatches"
            )


def _check_observed(nodes: Mapping[str, Any]) -> None:
    """Observed values must have a shape that their distribution has, or broadcasts to."""
    for name, node in nodes.items():
        if node["is_observed"] and isinstance(node["value"], Tensor):
            expected, got = node["fn"].shape(), node["value"].shape
            try:
                torch.broadcast_shapes(expected, got)
            except RuntimeError as error:
                raise DataError(
                    f"density: site {name!r} must be observed with values of shape {tuple(expected)}, got "
                    f"{tuple(got)}; mend the data or the distribution"
                ) from error


def _latent(msg: Any) -> bool:  # noqa: ANN401 (Pyro's message)
    return not msg["is_observed"] and not site_is_subsample(msg)


def is_discrete(fn: Any) -> bool:  # noqa: ANN401 (a Pyro distribution)
    """Tell whether a distribution is over countably many values."""
    return bool(fn.support.is_discrete)


def check_enumerable(name: str, fn: Any) -> None:  # noqa: ANN401 (a Pyro distribution)
    """Raise `DataError` for a discrete site with too many values to try each."""
    size = len(fn.enumerate_support(expand=False)) if fn.has_enumerate_support else None
    if size is None or size > LARGEST_SUPPORT:
        many = "infinitely many" if size is None else str(size)
        raise DataError(
            f"density: discrete site {name!r} must have few values to be summed out, got {many} "
            f"({type(fn).__name__}); sum it out by hand, use a distribution of ppgen.distributions that does, or make "
            "it continuous"
        )


def _check_same(
    sites: Mapping[str, Site],
    first: Mapping[str, tuple[Transform, Tensor]],
    second: Mapping[str, tuple[Transform, Tensor]],
) -> None:
    """Names, shapes and supports must be those of another run."""
    if list(first) != list(second):
        odd = sorted(set(first) ^ set(second)) or list(second)
        raise FitError(f"density: every run must have the same sites, {odd} come and go; make them unconditional")
    for name in sites:
        (transform, free), (other, other_free) = first[name], second[name]
        if free.shape != other_free.shape:
            raise FitError(
                f"density: site {name!r} must have one shape, got {tuple(free.shape)} and {tuple(other_free.shape)}; "
                "its shape depends on values"
            )
        if not torch.equal(transform(free), other(free)):
            raise FitError(
                f"density: the support of site {name!r} must not depend on another site; sample a value between 0 and "
                "1, or without bounds, and transform it"
            )
