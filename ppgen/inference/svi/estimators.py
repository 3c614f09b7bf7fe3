"""Estimators of the gradient: for each latent site the one with the least noise that its distributions allow."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch.distributions import kl_divergence

from ppgen.errors import DataError, FitError
from ppgen.predictions.conditioned import latent_sites, sampled_sites
from ppgen.programs.scores import check_sites, innermost, observes
from ppgen.programs.sites import MOST_ENUMERATED, check_enumerable, is_discrete

__all__ = ["Plan", "check_shapes", "drawn_sites", "plan"]

Program = Callable[..., Any]
Nodes = Mapping[str, Any]

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Plan:
    """The estimator of the gradient at each latent site.

    ``summed`` are discrete sites of the model that the guide leaves out; ``depth`` is how deep plates nest, and
    ``numbers`` counts those that the guide draws, for all rows behind a minibatch; ``local`` says whether some are of
    the rows of a minibatch, ``shapes`` are those of the latent sites of the model, and ``observes`` whether it observes
    anything.
    """

    closed: tuple[str, ...]
    reparameterised: tuple[str, ...]
    enumerated: tuple[str, ...]
    scored: tuple[str, ...]
    summed: tuple[str, ...]
    depth: int
    numbers: int = 1
    local: bool = False
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)
    observes: bool = True

    @property
    def draws(self) -> bool:
        """True if the guide draws anything that makes the bound random."""
        return bool(self.closed or self.reparameterised or self.enumerated or self.scored)

    def words(self) -> dict[str, str]:
        """Site -> estimator, in words."""
        ways = {
            "closed form": self.closed,
            "reparameterised": self.reparameterised,
            "enumerated": self.enumerated,
            "score function": self.scored,
            "summed out": self.summed,
        }
        return {site: way for way, sites in ways.items() for site in sites}


def plan(model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan:
    """Run both programs once and choose an estimator for every latent site.

    Raises
    ------
    FitError : the guide does not draw the latent sites of the model.
    DataError : a discrete site that is neither in the guide nor small enough to be summed out.
    """
    with torch.no_grad():
        q = poutine.trace(guide).get_trace(*args, **kwargs)
        with _SameShapes(set(latent_sites(q))):
            p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args, **kwargs)
    check_sites("svi", p.nodes)
    latent, drawn = latent_sites(p), latent_sites(q)
    summed = tuple(name for name, site in latent.items() if name not in drawn and is_discrete(site["fn"]))
    _check_cover(set(latent) - set(summed), set(drawn), set(p.nodes))
    for name in summed:
        check_enumerable(name, latent[name]["fn"])
    discrete = [name for name, site in drawn.items() if is_discrete(site["fn"])]
    enumerated = tuple(name for name in discrete if _is_small(name, drawn[name]["fn"], len(discrete)))
    scored = tuple(
        name for name, site in drawn_sites(q).items() if name not in enumerated and not site["fn"].has_rsample
    )
    exact = () if enumerated or summed else tuple(_closed(latent, drawn, scored))
    rest = tuple(name for name in drawn if name not in {*enumerated, *scored, *exact})
    frames = [f for trace in (p, q) for node in trace.nodes.values() for f in node.get("cond_indep_stack", ())]
    depth = max((-int(frame.dim or 0) for frame in frames if frame.vectorized), default=0)
    if enumerated and (summed or scored):
        other = (*summed, *scored)[0]
        raise FitError(
            f"svi: a guide that draws the small discrete site {enumerated[0]!r} must draw every other with small "
            f"support or by reparameterisation, {other!r} is not; leave the discrete sites out of the guide"
        )
    for name in scored:
        log.warning(
            "svi: the gradient of site %r comes from its score function (%s has no reparameterisation), which is "
            "noisy: prefer more particles and a smaller lr",
            name,
            type(innermost(drawn_sites(q)[name]["fn"])).__name__,
        )
    local = any(frame.full_size != frame.size for site in drawn.values() for frame in _frames(site))
    numbers = max(1, sum(map(_numbers, drawn.values())))
    shapes = {name: site["fn"].shape() for name, site in latent.items()}
    return Plan(exact, rest, enumerated, scored, summed, depth, numbers, local, shapes, observes(p.nodes))


def drawn_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Latent sites, a guide's auxiliary ones among them."""
    return {name: site for name, site in sampled_sites(trace).items() if not site["is_observed"]}


def check_shapes(p: poutine.Trace, drawn: set[str]) -> None:
    """Refuse draws of the guide whose shape is not that of the model's site: one would be broadcast, in silence.

    Raises
    ------
    FitError : it has not, because the guide is wrong, or the shape of the site depends on values.
    """
    nodes: dict[str, Any] = dict(p.nodes)
    for name in sorted(drawn & set(nodes)):
        _check_shape(nodes[name])


def _check_shape(site: Any) -> None:  # noqa: ANN401 (a node of a trace)
    expected, got = site["fn"].shape(), site["value"].shape
    if expected != got:
        raise FitError(
            f"svi: the guide must draw site {site['name']!r} in the shape of the model, {tuple(expected)}, got "
            f"{tuple(got)}; make them equal, and independent of the values of other sites"
        )


def _closed(latent: Nodes, drawn: Nodes, scored: tuple[str, ...]) -> Iterator[str]:
    """Sites whose divergence has a closed form.

    What a site depends on in the model comes before it there, and must come before it in the guide too: then the
    divergence, at the values drawn so far, has the right mean.
    """
    order = list(drawn)
    before: set[str] = set()
    for name in latent:
        if (
            before <= set(order[: order.index(name)])
            and name not in scored
            and _has_closed_form(drawn[name], latent[name])
        ):
            yield name
        before.add(name)


def _has_closed_form(q: Any, p: Any) -> bool:  # noqa: ANN401 (nodes of traces)
    if isinstance(innermost(q["fn"]), Delta) or q["scale"] is not p["scale"] and q["scale"] != p["scale"]:
        return False
    if q["mask"] is not p["mask"]:
        return False
    try:
        return kl_divergence(q["fn"], p["fn"]).shape == p["fn"].batch_shape == q["fn"].batch_shape
    except NotImplementedError:
        return False


def _check_cover(latent: set[str], drawn: set[str], known: set[str]) -> None:
    missing, extra = sorted(latent - drawn), sorted(drawn - known)
    if missing or extra:
        raise FitError(
            f"svi: the guide must draw the latent sites of the model, it lacks {missing} and adds {extra}; draw each "
            "under the model's name, helpers with infer={'is_auxiliary': True}"
        )


@final
class _SameShapes(Messenger):
    """Looks at the shapes of sites ``drawn`` by a guide before the model computes with what came."""

    def __init__(self, drawn: set[str]) -> None:
        super().__init__()
        self.drawn = drawn

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if msg["name"] in self.drawn:
            _check_shape(msg)


def _numbers(site: Any) -> int:  # noqa: ANN401 (a node of a trace)
    """Numbers of a site, those of the rows behind a minibatch among them."""
    return round(site["value"].numel() * math.prod(frame.full_size / frame.size for frame in _frames(site)))


def _frames(site: Any) -> list[Any]:  # noqa: ANN401 (a node of a trace)
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.full_size is not None]


def _is_small(name: str, fn: Any, count: int) -> bool:  # noqa: ANN401 (a distribution)
    try:
        check_enumerable(name, fn)
    except DataError:
        return False
    return count <= MOST_ENUMERATED
