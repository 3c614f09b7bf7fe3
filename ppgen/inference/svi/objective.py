r"""The evidence lower bound of a model and a guide, and a function whose gradient is that of the bound.

.. math::
    \mathcal L = \mathrm E_{q(\theta)} \left[ \log p(\theta, x) - \log q(\theta) \right]

Each latent site gets the estimator with the least noise that it allows: a Kullback-Leibler divergence in closed form
where the pair of distributions has one, reparameterised draws, the sum over all values where they are few and
discrete, and, where nothing else works, the score function with a running mean as its baseline.

References: Kingma & Welling (2014); Ranganath et al. (2014); Schulman et al. (2015).
"""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import vmap

from ppgen.errors import DataError, FitError
from ppgen.inference.svi.weighted import Pair, Weighted, check_weighted, weighted_bound
from ppgen.predictions.conditioned import latent_sites, sampled_sites
from ppgen.predictions.over_draws import gather, nothing
from ppgen.predictions.row_terms import row_scores
from ppgen.programs.enumeration import enumerated_log_prob, enumerating, expected_bound
from ppgen.programs.mapped import mapped
from ppgen.programs.parameters import Placed
from ppgen.programs.scores import check_sites, innermost, observes
from ppgen.programs.sites import MOST_ENUMERATED, check_enumerable, is_discrete

__all__ = ["Objective", "Plan", "plan"]

Program = Callable[..., Any]
Nodes = Mapping[str, Any]
DRAWN = 1 << 27  # numbers of the guide's draws that are kept

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Plan:
    """How the gradient of each latent site is found.

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
        """Whether the guide draws anything that makes the bound random."""
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
    wanted, drawn = latent_sites(p), latent_sites(q)
    summed = tuple(name for name, site in wanted.items() if name not in drawn and is_discrete(site["fn"]))
    _check_cover(set(wanted) - set(summed), set(drawn), set(p.nodes))
    for name in summed:
        check_enumerable(name, wanted[name]["fn"])
    discrete = [name for name, site in drawn.items() if is_discrete(site["fn"])]
    enumerated = tuple(name for name in discrete if _is_small(name, drawn[name]["fn"], len(discrete)))
    scored = tuple(
        name for name, site in _drawn_sites(q).items() if name not in enumerated and not site["fn"].has_rsample
    )
    exact = () if enumerated or summed else tuple(_closed(wanted, drawn, scored))
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
            type(innermost(_drawn_sites(q)[name]["fn"])).__name__,
        )
    local = any(frame.full_size != frame.size for site in drawn.values() for frame in _frames(site))
    numbers = max(1, sum(map(_numbers, drawn.values())))
    shapes = {name: site["fn"].shape() for name, site in wanted.items()}
    return Plan(exact, rest, enumerated, scored, summed, depth, numbers, local, shapes, observes(p.nodes))


@final
class Objective(nn.Module):
    """The bound of two programs as a function of their parameters; ``owners`` are the modules that hold these.

    The bound is the ELBO, or with ``weighted`` the importance-weighted one.
    """

    def __init__(
        self, model: Program, guide: Program, owners: tuple[nn.Module, ...], weighted: Weighted | None = None
    ) -> None:
        super().__init__()
        self.owners = nn.ModuleList(owners)
        self.programs, self.weighted = (model, guide), weighted
        self.plan = Plan((), (), (), (), (), 0)

    def learn(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Choose the estimators.

        Raises
        ------
        DataError, FitError : see `plan` and `check_weighted`.
        """
        self.plan = plan(*self.programs, args, kwargs)
        if self.weighted is not None:
            drawn = (*self.plan.closed, *self.plan.reparameterised)
            self.plan = replace(self.plan, closed=(), reparameterised=drawn)
            rough = (*self.plan.scored, *self.plan.enumerated)
            check_weighted(self._pair(args, kwargs), self.weighted, rough, self.plan.summed)

    def forward(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        declared: Mapping[str, Tensor],
        baselines: Tensor,
        particles: int,
        at_once: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A scalar whose gradient is the bound's, the bound, and a value of each baseline; means over particles.

        Weighted draws have a number of their own instead, and are drawn ``at_once``, or one after the other.
        """
        if self.weighted is not None:
            markers = baselines.new_zeros(self.weighted.draws) if at_once else None
            with Placed(declared):
                bound = weighted_bound(self._pair(args, kwargs), self.weighted, markers)
            return bound, bound, baselines

        def once(marker: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with mapped(marker):
                return self._estimate(args, kwargs, declared, baselines)

        if particles <= 1:
            return self._estimate(args, kwargs, declared, baselines)
        found = vmap(once, randomness="different")(baselines.new_zeros(particles))
        return tuple(value.mean(0) for value in found)  # type: ignore[return-value]

    def averaged(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], declared: Mapping[str, Tensor], noise: Tensor
    ) -> Float[Tensor, ""]:
        """The bound, a mean over the draws that a named guide makes of given noise (M, W)."""
        guide: Any = self.programs[1]

        def once(row: Tensor) -> Tensor:
            with guide.given(row):
                return self._estimate(args, kwargs, declared, row.new_zeros(0))[1]

        def mapped_once(row: Tensor) -> Tensor:
            with mapped(row):
                return once(row)

        if len(noise) == 1:
            return once(noise[0])
        found: Tensor = vmap(mapped_once, randomness="different")(noise)
        return found.mean()

    def draw(
        self,
        n: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        declared: Mapping[str, Tensor],
        without: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws of the guide at the present parameters, {site: (n, ...)}, and their log density ``log_q`` (n,).

        Where the guide draws sites in the plate over rows, ``log_q_rows`` (n, rows) is the density of those. What lies
        in the plates ``without`` is left out of all three.

        All at once where the guide allows it (see `over_draws`); fewer than ``n`` where they would not fit.
        """

        def kept(_: object, site: Any) -> bool:  # noqa: ANN401 (a node of a trace)
            return not any(frame.name in without for frame in site["cond_indep_stack"])

        def once(_: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            with Placed(declared):
                trace = poutine.trace(self.programs[1]).get_trace(*args, **kwargs)
                values = {name: site["value"] for name, site in latent_sites(trace).items() if kept(name, site)}
                trace.compute_log_prob(kept)
                log_q = torch.as_tensor(trace.log_prob_sum(kept), dtype=_type_of(values))
                return values, {"log_q": log_q, **({} if without else _of_rows(trace, args))}

        with torch.no_grad():
            size = sum(value.numel() for value in once(None)[0].values())
            n, asked = max(1, min(n, DRAWN // max(1, size))), n
            if n < asked:
                log.warning("svi: %d of %d draws are kept, for each holds %d numbers", n, asked, size)
            found: tuple[dict[str, Tensor], dict[str, Tensor]] = gather(once, nothing(n))
        return found

    def bad_site(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], declared: Mapping[str, Tensor]) -> str:
        """Name of the first site with a log density that is not finite at the present parameters; empty if none."""
        with torch.no_grad(), Placed(declared):
            p, q = _run(*self.programs, args, kwargs)
            for name, site in {**_drawn_sites(q), **sampled_sites(p)}.items():
                if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
                    return name
        return ""

    def _pair(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pair:
        return Pair(*self.programs, args, kwargs, self.plan.depth if self.plan.summed else None)

    def _estimate(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], declared: Mapping[str, Tensor], baselines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, guide = self.programs
        plan = self.plan
        if plan.enumerated:
            guide = enumerating(guide, plan.depth)
        if plan.enumerated or plan.summed:
            model = enumerating(model, None if plan.enumerated else plan.depth)
        with Placed(declared):
            p, q = _run(model, guide, args, kwargs)
        if plan.enumerated:
            bound = expected_bound(p, q)
            return bound, bound, baselines
        if not plan.summed:
            _check_shapes(p, set(latent_sites(q)))
        bound = _closed_bound(p, q, plan, enumerated_log_prob(p) if plan.summed else None)
        return (bound, bound, baselines) if not plan.scored else _with_scores(bound, p, q, plan, baselines)


def _run(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of both programs at one draw of the guide: the model's, the guide's."""
    q = poutine.trace(guide).get_trace(*args, **kwargs)
    return poutine.trace(poutine.replay(model, trace=q)).get_trace(*args, **kwargs), q


def _type_of(values: Mapping[str, Tensor]) -> torch.dtype:
    return next((value.dtype for value in values.values() if value.is_floating_point()), torch.float64)


def _of_rows(trace: poutine.Trace, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Log density of what is drawn in the plate over the rows of the first argument, if anything is."""
    rows = len(args[0]) if args and isinstance(args[0], Tensor) and args[0].ndim else 0
    scores = row_scores(_drawn_sites(trace).values(), rows)
    return {"log_q_rows": torch.stack(scores).sum(0)} if scores else {}


def _closed_bound(p: poutine.Trace, q: poutine.Trace, plan: Plan, joint: Tensor | None) -> Tensor:
    """The bound at one draw; divergences of the sites in ``plan.closed`` are exact."""

    def sampled(name: str, _: object) -> bool:
        return name not in plan.closed

    scored = set(plan.scored)
    bound = p.log_prob_sum(sampled) if joint is None else joint
    bound = bound - q.log_prob_sum(lambda name, site: sampled(name, site) and name not in scored)
    for name in scored:  # their gradient has mean zero
        bound = bound - _score(q.nodes[name]).detach().sum()
    for name in plan.closed:
        bound = bound - _divergence(q.nodes[name], p.nodes[name]).sum()
    return torch.as_tensor(bound)


def _with_scores(
    bound: Tensor, p: poutine.Trace, q: poutine.Trace, plan: Plan, baselines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add to the bound, for each scored site, what brings the gradient of its distribution in.

    A site in plates is weighed by that part of the bound which shares its plates.
    """
    surrogate, means = bound, []
    for number, name in enumerate(plan.scored):
        site = q.nodes[name]
        weight = (bound if plan.summed else _share(site, p, q)).detach()
        score = _score(site) / torch.as_tensor(site["scale"])
        surrogate = surrogate + (score * (weight - baselines[number])).sum()
        means.append(weight.mean())
    return surrogate, bound.detach(), torch.stack(means)


def _share(site: Any, p: poutine.Trace, q: poutine.Trace) -> Tensor:  # noqa: ANN401 (a node of a trace)
    """The bound, summed over all plates but those of ``site``."""
    own = _plates(site)
    total: Tensor | float = 0.0
    for sign, trace in ((1.0, p), (-1.0, q)):
        for node in sampled_sites(trace).values():
            value = node["fn"].log_prob(node["value"])
            value = scale_and_mask(value, node["scale"], node["mask"])
            shared = {dim for dim, name in _plates(node).items() if own.get(dim) == name}
            away = [dim for dim in range(-value.ndim, 0) if dim not in shared and value.shape[dim] > 1]
            total = total + sign * (value.sum(away, keepdim=True) if away else value)
    return torch.as_tensor(total)


def _plates(site: Any) -> dict[int, str]:  # noqa: ANN401 (a node of a trace)
    """The plates of a site: dim -> name. Plates side by side may have one dim."""
    return {int(frame.dim or 0): frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _score(site: Any) -> Tensor:  # noqa: ANN401 (a node of a trace)
    return scale_and_mask(site["fn"].log_prob(site["value"].detach()), site["scale"], site["mask"])


def _divergence(q: Any, p: Any) -> Tensor:  # noqa: ANN401 (nodes of traces)
    return scale_and_mask(kl_divergence(q["fn"], p["fn"]), p["scale"], p["mask"])


def _closed(wanted: Nodes, drawn: Nodes, scored: tuple[str, ...]) -> Iterator[str]:
    """Sites whose divergence has a closed form.

    What a site depends on in the model comes before it there, and must come before it in the guide too: then the
    divergence, at the values drawn so far, has the right mean.
    """
    order = list(drawn)
    before: set[str] = set()
    for name in wanted:
        if (
            before <= set(order[: order.index(name)])
            and name not in scored
            and _has_closed_form(drawn[name], wanted[name])
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


def _drawn_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Latent sites, a guide's auxiliary ones among them."""
    return {name: site for name, site in sampled_sites(trace).items() if not site["is_observed"]}


def _check_cover(wanted: set[str], drawn: set[str], known: set[str]) -> None:
    missing, extra = sorted(wanted - drawn), sorted(drawn - known)
    if missing or extra:
        raise FitError(
            f"svi: the guide must draw the latent sites of the model, it lacks {missing} and adds {extra}; draw each "
            "under the model's name, helpers with infer={'is_auxiliary': True}"
        )


def _check_shapes(p: poutine.Trace, drawn: set[str]) -> None:
    """What the guide draws must have the shape that the model gives its site: else one would be broadcast, in silence.

    Raises
    ------
    FitError : it has not, because the guide is wrong, or the shape of the site depends on values.
    """
    nodes: dict[str, Any] = dict(p.nodes)
    for name in sorted(drawn & set(nodes)):
        _check_shape(nodes[name])


def _check_shape(site: Any) -> None:  # noqa: ANN401 (a node of a trace)
    wanted, given = site["fn"].shape(), site["value"].shape
    if wanted != given:
        raise FitError(
            f"svi: the guide must draw site {site['name']!r} in the shape of the model, {tuple(wanted)}, got "
            f"{tuple(given)}; make them equal, and independent of the values of other sites"
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
