r"""The evidence lower bound of a model and a guide, and a function whose gradient is that of the bound.

.. math::
    \mathcal L = \mathrm E_{q(\theta)} \left[ \log p(\theta, x) - \log q(\theta) \right]

Each latent site gets the estimator with the least noise that it allows: a Kullback-Leibler divergence in closed form
where the pair of distributions has one, reparameterised draws, the sum over all values where they are few and
discrete, and, where nothing else works, the score function with a running mean as its baseline.

References: Kingma & Welling (2014); Ranganath et al. (2014); Schulman et al. (2015).
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import vmap

from ppgen.inference.svi.estimators import Plan, check_shapes, drawn_sites, plan
from ppgen.inference.svi.weighted import Pair, Weighted, check_weighted, weighted_bound
from ppgen.predictions.conditioned import latent_sites, sampled_sites
from ppgen.predictions.over_draws import gather, nothing
from ppgen.predictions.row_terms import row_scores
from ppgen.programs.enumeration import enumerated_log_prob, enumerating, expected_bound
from ppgen.programs.mapped import mapped
from ppgen.programs.parameters import ParametersAt

__all__ = ["Objective"]

Program = Callable[..., Any]
DRAWN = 1 << 27  # numbers of the guide's draws that are kept

log = logging.getLogger(__name__)


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
            with ParametersAt(declared):
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
            with guide.with_noise(row):
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
        rows: Collection[str] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws of the guide at the present parameters, {site: (n, ...)}, and their log density ``log_q`` (n,).

        Where the guide draws sites in the plates over ``rows`` (by name, else as long as the data),
        ``log_q_rows`` (n, rows) is the density of those. What lies in the plates ``without`` is left out of all three.

        All at once where the guide allows it (see `over_draws`); fewer than ``n`` where they would not fit.
        """

        def kept(_: object, site: Any) -> bool:  # noqa: ANN401 (a node of a trace)
            return not any(frame.name in without for frame in site["cond_indep_stack"])

        def once(_: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            with ParametersAt(declared):
                trace = poutine.trace(self.programs[1]).get_trace(*args, **kwargs)
                values = {name: site["value"] for name, site in latent_sites(trace).items() if kept(name, site)}
                trace.compute_log_prob(kept)
                log_q = torch.as_tensor(trace.log_prob_sum(kept), dtype=_type_of(values))
                return values, {"log_q": log_q, **({} if without else _of_rows(trace, args, rows))}

        with torch.no_grad():
            size = sum(value.numel() for value in once(None)[0].values())
            n, asked = max(1, min(n, DRAWN // max(1, size))), n
            if n < asked:
                log.warning("svi: %d of %d draws are kept, for each holds %d numbers", n, asked, size)
            found: tuple[dict[str, Tensor], dict[str, Tensor]] = gather(once, nothing(n))
        return found

    def bad_site(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], declared: Mapping[str, Tensor]) -> str:
        """Name of the first site with a log density that is not finite at the present parameters; empty if none."""
        with torch.no_grad(), ParametersAt(declared):
            p, q = _run(*self.programs, args, kwargs)
            for name, site in {**drawn_sites(q), **sampled_sites(p)}.items():
                if not bool(torch.isfinite(site["fn"].log_prob(site["value"])).all()):
                    return name
        return ""

    def _pair(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pair:
        return Pair(*self.programs, args, kwargs, self.plan.depth if self.plan.summed else None)

    def _estimate(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], declared: Mapping[str, Tensor], baselines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three values of `forward` from one draw of the guide, each site by its estimator in the plan."""
        model, guide = self.programs
        plan = self.plan
        if plan.enumerated:
            guide = enumerating(guide, plan.depth)
        if plan.enumerated or plan.summed:
            model = enumerating(model, None if plan.enumerated else plan.depth)
        with ParametersAt(declared):
            p, q = _run(model, guide, args, kwargs)
        if plan.enumerated:
            bound = expected_bound(p, q)
            return bound, bound, baselines
        if not plan.summed:
            check_shapes(p, set(latent_sites(q)))
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


def _of_rows(trace: poutine.Trace, args: tuple[Any, ...], plates: Collection[str] | None) -> dict[str, Tensor]:
    """Log density of the draws in the plate over the rows of the first argument; empty if there are none."""
    rows = len(args[0]) if args and isinstance(args[0], Tensor) and args[0].ndim else 0
    scores = row_scores(drawn_sites(trace).values(), rows, plates)
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
