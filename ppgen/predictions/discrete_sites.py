r"""Discrete latent sites that were summed out by enumeration: their posterior given the other parameters.

With a weight added to the log probability of each value of a site, the gradient of the log of the sum over all values
is the posterior of that site. Drawn site by site, each given those before it, they are one joint draw. A site comes
after those in fewer plates, for elements of a plate are independent only given these.

References: Obermeyer et al. (2019), "Tensor variable elimination for plated factor graphs"; Pyro's ``infer_discrete``
draws from the same posterior, but not under ``vmap``.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import grad

from ppgen.data.parts import Inputs
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import conditioned, latent_sites, name_of, observed_sites, run
from ppgen.predictions.over_draws import Theta, at, gather
from ppgen.programs.enumeration import Sums, enumerating
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory
from ppgen.programs.rows import over_rows
from ppgen.programs.sites import LARGEST_SUPPORT

__all__ = ["Discrete", "discrete", "draw_shared", "held", "sum_rows"]


def discrete(model: Model, theta: Theta, x: Tensor, u: Inputs, trace: poutine.Trace) -> "Discrete":
    """The latent sites that ``trace``, a run of the program at ``theta``, drew from their prior.

    Raises
    ------
    FitError : one of them is continuous, or has too many values to be summed over.
    """
    latent = latent_sites(trace)
    unknown = sorted(name for name, site in latent.items() if not _has_few_values(site["fn"]))
    if unknown:
        raise FitError(
            f"{name_of(model)}: the posterior must hold every latent site, {unknown} not among {sorted(theta)}; "
            "sum local latents out (see ppgen.distributions)"
        )
    sites: dict[str, Any] = dict(trace.nodes)
    depth = max(
        (-frame.dim for site in sites.values() if site["type"] == "sample" for frame in _frames(site)), default=0
    )
    plates = {name: _frames(latent[name]) for name in sorted(latent, key=lambda name: len(_frames(latent[name])))}
    return Discrete(model, theta, x, u, plates, depth)


def draw_shared(model: Model, draws: Mapping[str, Tensor], x: Tensor, u: Inputs) -> dict[str, Tensor]:
    """A draw of the discrete sites that rows share, given data, at each of the draws {site: (S, ...)} of the others.

    Nothing where there is no such site, or where the draws lack other sites than discrete ones.
    """

    def shared(theta: Theta) -> dict[str, Tensor]:
        sites = discrete(model, theta, x, u, run(model, theta, x, u))
        names = sites.outside()
        given, _ = sites.draw(names)
        return {name: given.theta[name] for name in names}

    latent = latent_sites(run(model, at(draws, 0), x, u))
    if not latent or not all(_has_few_values(site["fn"]) for site in latent.values()) or not shared(at(draws, 0)):
        return {}
    found: dict[str, Tensor] = gather(shared, draws)
    return found


def held(trace: poutine.Trace, names: Collection[str]) -> dict[str, tuple[list[Any], Tensor]]:
    """Plates of discrete sites from the left, and one at the number of the value that each has, (*plates, K)."""
    found = {}
    for name in names:
        site: Any = trace.nodes[name]
        frames, values = _frames(site), _values(trace, name)
        value = site["value"].reshape([*(frame.size for frame in frames), 1, *values.shape[1:]])
        same = (value == values).flatten(len(frames) + 1).all(-1) if values.ndim > 1 else value == values
        found[name] = (frames, same.double())
    return found


@final
@dataclass(frozen=True, eq=False)
class Discrete:
    """Discrete sites of a program at ``theta``: {name: its plates from the left}, those in fewer plates first."""

    model: Model
    theta: Theta
    x: Tensor
    u: Inputs
    plates: Mapping[str, list[Any]]
    depth: int

    def marginals(self) -> dict[str, Tensor]:
        """Posterior probability of each value of each site, (*plates, K)."""
        return self._probabilities(self._enumerated(self.theta), list(self.plates))

    def check_shared(self) -> None:
        """Refuse other data than that of the fit where rows share a site, for it would be drawn knowing these alone."""
        known = memory(self.model)
        if (shared := self.outside()) and known.data is not None and not known.is_of(self.x, self.u):
            raise FitError(
                f"{name_of(self.model)}: x must be the data of the fit, for rows share the discrete site {shared[0]!r} "
                "and no draws of it given those data are kept, got other data; ask about the data of the fit, leave "
                "its labels in their order, or make the site continuous"
            )

    def draw(self, names: Collection[str]) -> tuple["Discrete", dict[str, Tensor]]:
        """One joint draw of the sites ``names``: the rest given it, and the numbers of the values that were drawn.

        Sites in fewer plates must be among ``names``.
        """
        theta, drawn = dict(self.theta), {}
        for name in [name for name in self.plates if name in names]:
            trace = self._enumerated(theta)
            drawn[name] = dist.Categorical(self._probabilities(trace, [name])[name]).sample()
            values = _values(trace, name)
            theta[name] = values[drawn[name]].reshape(_batch_shape(self.plates[name]) + values.shape[1:])
        rest = {name: frames for name, frames in self.plates.items() if name not in names}
        return Discrete(self.model, theta, self.x, self.u, rest, self.depth), drawn

    def outside(self) -> list[str]:
        """Sites that rows share: those in no plate over the rows."""
        return [name for name, frames in self.plates.items() if not over_rows(self.model, frames, len(self.x))]

    def log_joint(self) -> Tensor:
        """Log p(theta, x), summed over the values of the sites."""
        trace = self._enumerated(self.theta)
        return contract_to_tensor(_factors(trace), _summed(trace), ring=Sums())

    def log_likelihood(self) -> Tensor:
        """Log p(x | theta) of each row, summed over the values of sites that all lie in the plate over rows."""
        trace = self._enumerated(self.theta)
        return self._by_row(trace) - self._by_row(trace, observed_sites(trace, self.theta))

    def log_rows(self, plates: Collection[str]) -> Tensor:
        """Log density (N,) of everything in ``plates`` over the rows, summed over the values of sites there."""
        trace = self._enumerated(self.theta, tracked=True)
        symbols = {trace.plate_to_symbol[name] for name in plates if name in trace.plate_to_symbol}
        return sum_rows(trace, len(self.x), symbols)

    def _by_row(self, trace: poutine.Trace, without: Collection[str] = ()) -> Tensor:
        """Log of the sums over the values of sites, of each row; what is in no plate over rows is left out."""
        sites: dict[str, Any] = dict(trace.nodes)
        frames = {f.name: f for site in sites.values() if site["type"] == "sample" for f in _frames(site)}
        own = over_rows(self.model, list(frames.values()), len(self.x))
        return sum_rows(trace, len(self.x), [trace.plate_to_symbol[frame.name] for frame in own], without)

    def _enumerated(self, theta: Theta, *, tracked: bool = False) -> poutine.Trace:
        program = enumerating(conditioned(self.model, theta, enumerated=True), self.depth)
        with nullcontext() if tracked else torch.no_grad(), isolated():
            trace = poutine.trace(program).get_trace(self.x, u=self.u)
            trace.compute_log_prob()
            trace.pack_tensors()
        return trace

    def _probabilities(self, trace: poutine.Trace, names: Collection[str]) -> dict[str, Tensor]:
        """Posterior probabilities (*plates, K) of the values of sites: a gradient."""

        def total(weights: Mapping[str, Tensor]) -> Tensor:
            terms = _factors(trace)
            for name, weight in weights.items():
                terms[_ordinal(trace, self.plates[name])].append(_packed(trace, name, self.plates[name], weight))
            return contract_to_tensor(terms, _summed(trace), ring=Sums())

        dtype = next((v.dtype for v in self.theta.values() if v.is_floating_point()), self.x.dtype)
        sizes = {name: [*(frame.size for frame in self.plates[name]), len(_values(trace, name))] for name in names}
        return grad(total)({name: self.x.new_zeros(size, dtype=dtype) for name, size in sizes.items()})


def sum_rows(trace: poutine.Trace, rows: int, symbols: Collection[str], without: Collection[str] = ()) -> Tensor:
    """Log density (N,) of everything in the plates of these symbols, of a trace whose tensors are packed.

    Discrete sites are summed out; sites ``without`` are left out, and so are those in no such plate.
    """
    scores = []
    tree = contract_tensor_tree(_factors(trace, without), _summed(trace), ring=Sums())
    for ordinal, terms in tree.items():
        row = next((symbol for symbol in symbols if symbol in ordinal), None)
        for term in terms if row is not None else []:
            others = [i for i, symbol in enumerate(term._pyro_dims) if symbol != row]
            scores.append((term.sum(others) if others else term).expand(rows))
    return torch.stack(scores).sum(0) if scores else torch.zeros(rows)


def _factors(trace: poutine.Trace, without: Collection[str] = ()) -> OrderedDict[frozenset[str], list[Tensor]]:
    """Log probabilities of a trace of packed tensors, by the plates they lie in, the sites ``without`` left out."""
    found: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sites: dict[str, Any] = dict(trace.nodes)
    for name, site in sites.items():
        if site["type"] == "sample" and not site_is_subsample(site) and name not in without:
            found.setdefault(_ordinal(trace, _frames(site)), []).append(site["packed"]["log_prob"])
    return found


def _summed(trace: poutine.Trace) -> set[str]:
    """Axes of a trace of packed tensors that hold the values of a site."""
    return set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())


def _frames(site: Mapping[str, Any]) -> list[Any]:
    """Plates of a site, from the left."""
    return sorted((frame for frame in site["cond_indep_stack"] if frame.vectorized), key=lambda frame: frame.dim)


def _ordinal(trace: poutine.Trace, frames: Collection[Any]) -> frozenset[str]:
    return frozenset(trace.plate_to_symbol[frame.name] for frame in frames)


def _packed(trace: poutine.Trace, name: str, frames: Collection[Any], weight: Tensor) -> Any:  # noqa: ANN401
    """A weight of each value of a site as a factor that names its axes, those of length one left out."""
    site: Any = trace.nodes[name]
    symbols = [*(trace.plate_to_symbol[frame.name] for frame in frames), site["infer"]["_enumerate_symbol"]]
    term: Any = weight.squeeze()
    term._pyro_dims = "".join(symbol for symbol, size in zip(symbols, weight.shape, strict=True) if size > 1)
    return term


def _values(trace: poutine.Trace, name: str) -> Tensor:
    """Values (K, *event) that a site can take."""
    fn: Any = trace.nodes[name]["fn"]
    support = fn.enumerate_support(expand=False)
    return support.reshape((len(support), *fn.event_shape))


def _batch_shape(frames: Collection[Any]) -> torch.Size:
    """Shape of a site in these plates: length one where there is none."""
    sizes = {frame.dim: frame.size for frame in frames}
    return torch.Size([sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)])


def _has_few_values(fn: Any) -> bool:  # noqa: ANN401 (a Pyro distribution)
    if not fn.support.is_discrete or not fn.has_enumerate_support:
        return False
    return len(fn.enumerate_support(expand=False)) <= LARGEST_SUPPORT
