"""Predictions of any Pyro model given draws of its parameters; knows nothing of engines.

The model runs once per draw, conditioned on it, as its author wrote it: nothing is vectorised over draws, so event
dimensions outside plates and plates over rows are right whatever their layout. Next to message passing a run costs
little. Summed-out latents are found by protocol alone: an observed site whose distribution has ``latents``.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.data.arrays import lengths
from ppgen.errors import FitError
from ppgen.model import Model

__all__ = [
    "Latents",
    "Theta",
    "at",
    "combine",
    "data_distribution",
    "exists",
    "forecast",
    "impute",
    "isolated",
    "latent_sites",
    "latents",
    "log_joint",
    "log_likelihood",
    "missing_share",
    "prior",
    "replicate",
]

Theta = Mapping[str, Tensor]
"""One draw of every parameter, site -> value."""

WRAPPERS = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)


@dataclass(frozen=True, eq=False)
class Latents:
    """What is known of summed-out latents: averages and modes, ``draws`` (n, ...) of them, and the axes of both."""

    values: Mapping[str, Tensor]
    draws: Mapping[str, Tensor]
    dims: Mapping[str, tuple[str, ...]]


@contextmanager
def isolated() -> Iterator[None]:
    """A Pyro of one's own: an empty parameter store, parameters local to their modules, no validation of Pyro's.

    Without it two models in one process can share parameters. All is as before on exit.
    """
    store, local = pyro.get_param_store().scope(), pyro.settings.context(module_local_params=True)
    with store, local, pyro.validation_enabled(False):
        yield


def at(draws: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Draw number ``index`` of {site: (S, ...)}."""
    return {site: value[index] for site, value in draws.items()}


def log_joint(model: Model, theta: Theta, x: Tensor, *, u: Tensor | None = None) -> Tensor:
    """Log p(theta, x), latents summed out, in the units of the sites."""
    return torch.as_tensor(_trace(model, theta, x, u).log_prob_sum())


def log_likelihood(model: Model, theta: Theta, x: Tensor, *, u: Tensor | None = None) -> Float[Tensor, " N"]:
    """Log p(x | theta) of each row of ``x``: every observed site inside the plate over rows."""
    total = x.new_zeros(len(x))
    found = False
    trace = _trace(model, theta, x, u)
    trace.compute_log_prob()
    for site in _observed(trace, theta).values():
        score = _per_row(site, len(x))
        found = found or score is not None
        total = total if score is None else total + score
    if not found:
        raise FitError(
            f"{_name(model)}: the data must be sampled in a plate over its {len(x)} rows, found none; "
            "write `with pyro.plate(..., len(x)):` around its site"
        )
    return total


def exists(model: Model, x: Float[Tensor, "N *event"]) -> Bool[Tensor, "N *event"]:
    """Entries that are part of a sequence: trailing NaN is the end of one, where the data has time."""
    if "time" not in model.data_dims:
        return torch.ones_like(x, dtype=torch.bool)
    inside = torch.arange(x.shape[1], device=x.device) < lengths(x)[:, None]
    return inside.reshape(*inside.shape, *[1] * (x.ndim - 2)).expand_as(x)


def missing_share(model: Model, x: Float[Tensor, "N *event"]) -> float:
    """Share of entries not observed, among those that exist; NaN where none does."""
    return float(torch.isnan(x[exists(model, x)]).double().mean())


def impute(model: Model, theta: Theta, x: Tensor, *, u: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """``x`` with each NaN replaced by one draw given everything observed; the rest bit for bit, trailing NaN too.

    ``start`` is such an ``x`` from another draw of the parameters, for distributions that sample step by step.
    """
    fn = data_distribution(model, theta, x, u=u)
    if hasattr(fn, "impute"):
        with torch.no_grad():
            drawn = fn.impute(x) if start is None else fn.impute(x, start)
    elif _factorises(fn):
        drawn = fn.sample()
    else:
        raise FitError(
            f"{_name(model)}: the distribution of the data must say how missing entries follow from observed ones, "
            f"got {type(fn).__name__}; use one whose entries are independent given the parameters, or give it "
            "`impute(x, start=None)`"
        )
    return torch.where(torch.isnan(x) & exists(model, x), _reshape(model, drawn, x), x)


def replicate(model: Model, theta: Theta, x: Tensor, *, u: Tensor | None = None) -> Tensor:
    """One replicated data set of the shape of ``x``, NaN past the end of a sequence."""
    drawn = data_distribution(model, theta, x, u=u).sample()
    return torch.where(exists(model, x), _reshape(model, drawn, x), torch.nan)


def forecast(model: Model, theta: Theta, x: Tensor, horizon: int, *, u: Tensor | None = None) -> Tensor:
    """One draw of the ``horizon`` steps that follow each sequence's last observation, (N, horizon, ...)."""
    fn = data_distribution(model, theta, x, u=u)
    if not hasattr(fn, "forecast"):
        raise FitError(
            f"{_name(model)}: forecast needs a distribution over time series, got {type(fn).__name__}; "
            "it must have `forecast(x, horizon)`"
        )
    with torch.no_grad():
        return fn.forecast(x, horizon)


def latents(model: Model, draws: Mapping[str, Tensor], x: Tensor, n: int = 0, *, u: Tensor | None = None) -> Latents:
    """Summed-out latents of ``x``, averaged over draws {site: (S, ...)}, with ``n`` draws of the latents themselves.

    Over several draws the mode of a discrete latent is the most probable value of each step under the averaged
    marginals; with one it is what the distribution says (the most probable path of a hidden Markov model).
    """
    count = len(next(iter(draws.values())))
    return combine((_latents(model, at(draws, index), x, u) for index in range(count)), count, n)


def combine(posteriors: Iterable[Any], count: int, n: int = 0) -> Latents:
    """Average what ``distribution.latents(x)`` returned for ``count`` draws, and draw ``n`` times, evenly over them."""
    wanted = [n // count + (index < n % count) for index in range(count)]
    averages: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {}
    for posterior, repeats in zip(posteriors, wanted, strict=True):
        for name, value in posterior.marginals.items():
            averages[name] = averages[name] + value / count if name in averages else value / count
        for _ in range(repeats):
            for name, value in posterior.sample().items():
                samples.setdefault(name, []).append(value)
    modes = posterior.mode if count == 1 else {k: _mode(v, averages, k) for k, v in posterior.mode.items()}
    draws = {name: torch.stack(values) for name, values in samples.items()}
    return Latents({**averages, **modes}, draws, dict(posterior.dims))


def prior(model: Model, x: Tensor, *, u: Tensor | None = None) -> dict[str, Tensor]:
    """One draw of every parameter from the prior."""
    with torch.no_grad(), isolated():
        trace = poutine.trace(model.model).get_trace(x, u=u)
    return {name: site["value"] for name, site in latent_sites(trace).items()}


def latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Sampled sites of a model's or a guide's trace, without observations, subsamples and a guide's auxiliaries."""
    sites: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site["infer"].get("is_auxiliary")
        and not site_is_subsample(site)
    }


def data_distribution(model: Model, theta: Theta, x: Tensor, *, u: Tensor | None = None) -> Any:  # noqa: ANN401
    """Distribution of the data: that of site ``"x"``, else of the one observed site of the shape of ``x``."""
    return _unwrap(_data_site(model, _trace(model, theta, x, u), theta, x)["fn"])


@final
class _At(Messenger):
    """Puts drawn parameters in the place of their sites, and refuses one of another shape."""

    def __init__(self, theta: Theta, who: str) -> None:
        super().__init__()
        self.theta, self.who = theta, who

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if msg["name"] not in self.theta:
            return
        value, wanted = self.theta[msg["name"]], msg["fn"].batch_shape + msg["fn"].event_shape
        if value.shape != wanted:
            raise FitError(
                f"{self.who}: site {msg['name']!r} must have shape {tuple(wanted)} for this data, got "
                f"{tuple(value.shape)} from the fit; a latent that grows with the data cannot be carried over"
            )
        msg["value"], msg["is_observed"] = value, True


def _trace(model: Model, theta: Theta, x: Tensor, u: Tensor | None) -> poutine.Trace:
    """Run the model at ``theta``, which must hold every latent site."""
    with torch.no_grad(), isolated(), poutine.trace() as run, _At(theta, _name(model)):
        model.model(x, u=u)
    unknown = sorted(latent_sites(run.trace))
    if unknown:
        raise FitError(
            f"{_name(model)}: the posterior must hold every latent site, {unknown} not among {sorted(theta)}; "
            "sum local latents out (see ppgen.distributions)"
        )
    return run.trace


def _observed(trace: poutine.Trace, theta: Theta) -> dict[str, Any]:
    """Observed sites, without the conditioned ones and those that only record a value."""
    sites: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not site["infer"].get("_deterministic")
        and name not in theta
    }


def _latents(model: Model, theta: Theta, x: Tensor, u: Tensor | None) -> Any:  # noqa: ANN401
    trace = _trace(model, theta, x, u)
    for site in _observed(trace, theta).values():
        if hasattr(fn := _unwrap(site["fn"]), "latents"):
            with torch.no_grad():
                return fn.latents(x)
    raise FitError(
        f"{_name(model)}: has no summed-out latents; sample the data from a distribution of ppgen.distributions, "
        "whose `latents(x)` gives them"
    )


def _data_site(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> dict[str, Any]:
    observed = _observed(trace, theta)
    if "x" in observed:
        return observed["x"]
    alike = [site for site in observed.values() if isinstance(site["value"], Tensor) and site["value"].shape == x.shape]
    if len(alike) == 1:
        return alike[0]
    raise FitError(
        f'{_name(model)}: one observed site must be named "x", got {sorted(observed)}; rename the data\'s site'
    )


def _per_row(site: dict[str, Any], rows: int) -> Tensor | None:
    """Log-probability of a site per row; None for a site outside the plate over rows."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.size == rows]
    if not frames:
        return None
    axis = min(frame.dim for frame in frames)
    score = site["log_prob"]
    score = score.expand(torch.broadcast_shapes(score.shape, (rows,) + (1,) * (-axis - 1)))
    return score.movedim(axis, 0).flatten(1).sum(-1) if score.ndim > 1 else score


def _unwrap(fn: Any) -> Any:  # noqa: ANN401
    """The distribution inside Pyro's wrappers that speaks a protocol of ours; ``fn`` itself when none does."""
    inner = fn
    while isinstance(inner, WRAPPERS) and not _speaks(inner):
        inner = inner.base_dist
    return inner if _speaks(inner) else fn


def _speaks(fn: Any) -> bool:  # noqa: ANN401
    return any(hasattr(fn, method) for method in ("latents", "impute", "forecast"))


def _factorises(fn: Any) -> bool:  # noqa: ANN401
    """Whether entries are independent given the parameters."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return len(fn.event_shape) == 0


def _reshape(model: Model, drawn: Tensor, x: Tensor) -> Tensor:
    if drawn.numel() != x.numel():
        raise FitError(
            f"{_name(model)}: a replicate must have the shape of the data {tuple(x.shape)}, got {tuple(drawn.shape)}"
        )
    return drawn.reshape(x.shape).to(x.dtype)


def _mode(mode: Tensor, averages: Mapping[str, Tensor], name: str) -> Tensor:
    """Mode under averaged marginals; negative where ``mode`` says that a step does not exist."""
    average = averages[name.removesuffix("_mode")]
    return average if mode.is_floating_point() else torch.where(mode < 0, mode, average.argmax(-1))


def _name(model: Model) -> str:
    return type(model).__name__
