r"""A Pyro program as one function of one vector: ``log_density(v (C, P)) -> (C,)`` for C chains at once.

The program is run to learn its sites. From then on a flat vector of unconstrained numbers holds every continuous
latent site, and the density is

.. math::
    \log p(\theta(v), x) + \log \left| \partial \theta / \partial v \right|

with discrete latents summed out: those of collapsed distributions by themselves, other small ones by enumeration.

References: Bingham et al. (2019) for the programs; Carpenter et al. (2017) for sampling on the unconstrained scale.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from ppgen.errors import DataError, FitError
from ppgen.model import Model
from ppgen.programs.enumeration import enumerated_log_prob, enumerating
from ppgen.programs.isolated import isolated
from ppgen.programs.program import cast, copy_model, make_local
from ppgen.programs.sites import Last, Program, Site, SitesAt, learn
from ppgen.programs.tracing import Batch, Mode, blame, build
from ppgen.rng import private_stream

__all__ = ["NUMBERS_AT_ONCE", "Density", "Gradient", "density", "device_of", "private_pyro"]

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]

NOISE, NOISE_POINTS = 0.01, 8  # nats of rounding that a density may carry, and where that is tried
NUMBERS_AT_ONCE = 1 << 22  # numbers that a conversion of draws works on at a time


def density(
    model: Callable[..., Any] | Model,
    *args: Any,  # noqa: ANN401 (the program's own)
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> "Density":
    """Learn the sites of a Pyro program and return its density.

    Parameters
    ----------
    model : any callable with ``pyro.sample`` sites, or a :class:`~ppgen.model.Model`. It is not changed.
    args, kwargs : its arguments; floating arrays and tensors are cast to ``dtype``.
    dtype : type of the density.
    device : device of the program, its arguments and the vectors; None leaves them where the first tensor is.

    Raises
    ------
    DataError : no latent site, or a site that cannot be sampled by gradients (named, with the ways out).
    FitError : the program's sites depend on their values; or, in float32, rounding moves the density by 0.01 nat.
    """
    began = time.perf_counter()
    device = device_of(model, args) if device is None else device
    program, arguments, keywords = _prepare(model, args, kwargs, dtype, device)
    with private_stream(0), private_pyro(dtype, device):
        sites, enumerated, depth = learn(program, arguments, keywords)
    if enumerated:
        program = enumerating(program, depth)
    found = Density(program, arguments, keywords, sites, enumerated, dtype, time.perf_counter() - began, device)
    if dtype != torch.float64:
        _check_noise(found, density(model, *args, device=device, **kwargs))
    return found


@final
@dataclass(frozen=True, eq=False, repr=False)
class Density:
    """Log density of all continuous latent sites of a program, as a function of one flat vector.

    ``sites`` maps names to where each lies in the vector, ``seconds`` is what learning them took. Made by
    :func:`density`.
    """

    program: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sites: Mapping[str, Site]
    enumerated: tuple[str, ...]
    dtype: torch.dtype
    seconds: float
    device: torch.device = torch.device("cpu")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{site.name} {tuple(site.shape)}" for site in self.sites.values())
        return f"Density({self.size} numbers: {shapes})"

    @property
    def size(self) -> int:
        """Length P of the vector."""
        return sum(site.size for site in self.sites.values())

    @property
    def plates(self) -> dict[str, int]:
        """Plate -> its size."""
        return {name: size for site in self.sites.values() for name, size in site.plates.items()}

    def log_density(self, v: Float[Tensor, "C P"]) -> Float[Tensor, " C"]:
        """Log density of each row, on the unconstrained scale."""
        with self._running():
            return vmap(self.one)(v).detach()

    def value_and_grad(self, v: Float[Tensor, "C P"]) -> tuple[Float[Tensor, " C"], Float[Tensor, "C P"]]:
        """Log density and its gradient at each row, straight through the program (see `compiled` for many calls)."""
        with self._running():
            value, gradient = self._vectorized(v)
        return value.detach(), gradient.detach()

    def compiled(self, chains: int, *, mode: Mode = "auto", calls: int = 0) -> Batch:
        """Value and gradient as `value_and_grad` gives them, for exactly ``chains`` rows; see `batch`."""
        example = self.start(chains, torch.Generator().manual_seed(0))
        return self.batch(lambda gradient: gradient, [example], mode=mode, calls=calls)

    def batch(
        self,
        wrap: Callable[[Gradient], Callable[..., tuple[Tensor, ...]]],
        examples: Sequence[Tensor],
        *,
        mode: Mode = "auto",
        calls: int = 0,
    ) -> Batch:
        """A function of tensors that calls the gradient, as one graph free of Pyro.

        Parameters
        ----------
        wrap : given `value_and_grad`, the function.
        examples : its inputs; the result takes inputs of exactly these shapes.
        mode : ``"compiled"`` by torch's inductor, ``"traced"`` (a graph of torch operators), ``"eager"`` (row by row
            through the program, slow, but it may look at its values), or ``"auto"``: compiled where the expected
            ``calls`` pay for it and a compiler works, else traced.

        Raises
        ------
        FitError : the program looks at its values; the message names the line.
        """
        if mode == "eager":
            return Batch(wrap(self._by_rows), "eager", "asked for")
        with self._running():
            return build(wrap(self._vectorized), examples, mode, calls)

    def constrain(self, v: Float[Tensor, "*B P"]) -> dict[str, Tensor]:
        """Values of the sites in their own units, {site: (*B, *shape)}."""
        rows = v.reshape(-1, v.shape[-1])
        parts = rows.split(max(1, NUMBERS_AT_ONCE // max(1, self.size)))
        pieces = [vmap(self._values)(part) for part in parts]
        return {
            name: torch.cat([piece[name] for piece in pieces]).reshape(*v.shape[:-1], *site.shape)
            for name, site in self.sites.items()
        }

    def unconstrain(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*B P"]:
        """The vector of values in the units of the sites, {site: (*B, *shape)}."""
        self._check_values(values)
        flat = []
        for name, site in self.sites.items():
            value = torch.as_tensor(values[name], dtype=self.dtype, device=self.device)
            batch = value.shape[: value.ndim - len(site.shape)]
            rows = vmap(lambda one, site=site: site.transform.inv(one).reshape(-1))(value.reshape(-1, *site.shape))
            flat.append(rows.reshape(*batch, site.size))
        return torch.cat(flat, -1)

    def start(self, chains: int, generator: torch.Generator, radius: float = 2.0) -> Float[Tensor, "C P"]:
        """Uniform draws from the cube of half-width ``radius`` around zero on the unconstrained scale."""
        share = torch.rand(chains, self.size, generator=generator, dtype=self.dtype, device=generator.device)
        return (share.to(self.device) * 2 - 1) * radius

    def prior(self, n: int) -> dict[str, Tensor]:
        """``n`` draws of the sites from the prior, {site: (n, *shape)}, from torch's global generator.

        Raises
        ------
        DataError : a prior that cannot be drawn from, as a flat one.
        """
        last = Last()
        try:
            with torch.no_grad(), private_pyro(self.dtype, self.device), last:
                runs: list[Any] = [poutine.trace(self.program).get_trace(*self.args, **self.kwargs) for _ in range(n)]
        except NotImplementedError as error:
            raise DataError(
                f"density: the prior of site {last.name!r} must be one that can be drawn from, got one that cannot; "
                "write a proper prior, or choose another start"
            ) from error
        return {name: torch.stack([run.nodes[name]["value"] for run in runs]) for name in self.sites}

    def bad_site(self, v: Float[Tensor, " P"]) -> str:
        """Say which site has a log density that is not finite at ``v``, in words for a message; empty if none."""
        with torch.no_grad(), private_pyro(self.dtype, self.device):
            trace = self.trace(self._values(v))
            sites: dict[str, Any] = dict(trace.nodes)
            for name, site in sites.items():
                if site["type"] == "sample" and not torch.isfinite(site["fn"].log_prob(site["value"])).all():
                    return f" (site {name!r})"
        return ""

    def with_arguments(self, *args: Any) -> "Density":  # noqa: ANN401 (the program's own)
        """Replace the program's arguments. Shapes must stay the same; works inside ``vmap`` and ``grad``."""
        return replace(self, args=args)

    def trace(self, values: Mapping[str, Tensor]) -> poutine.Trace:
        """The program run with these values at its continuous latent sites, {site: shape}."""
        with SitesAt(values, self.enumerated):
            return poutine.trace(self.program).get_trace(*self.args, **self.kwargs)

    def one(self, v: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """Log density of one vector, to be mapped over and differentiated."""
        values, jacobian = {}, v.new_zeros(())
        for name, site in self.sites.items():
            free = v[site.entries].reshape(site.free_shape)
            values[name] = site.transform(free)
            jacobian = jacobian + site.transform.log_abs_det_jacobian(free, values[name]).sum()
        trace = self.trace(values)
        return (enumerated_log_prob(trace) if self.enumerated else trace.log_prob_sum()) + jacobian

    def _vectorized(self, v: Float[Tensor, "C P"]) -> tuple[Float[Tensor, " C"], Float[Tensor, "C P"]]:
        gradient, value = vmap(grad_and_value(self.one))(v)
        return value, gradient

    def _values(self, v: Float[Tensor, " P"]) -> dict[str, Tensor]:
        return {name: site.transform(v[site.entries].reshape(site.free_shape)) for name, site in self.sites.items()}

    def _by_rows(self, v: Float[Tensor, "C P"]) -> tuple[Float[Tensor, " C"], Float[Tensor, "C P"]]:
        """Plain autograd, one row after the other: a program may then look at its values.

        A row at which the program refuses its values has density zero.
        """
        values, gradients = [], []
        with private_pyro(self.dtype, self.device), torch.enable_grad():
            for row in v:
                leaf = row.detach().requires_grad_()
                try:
                    value = self.one(leaf)
                    gradients.append(torch.autograd.grad(value, leaf)[0])
                    values.append(value.detach())
                except (ValueError, torch.linalg.LinAlgError):
                    gradients.append(torch.full_like(row, torch.nan))
                    values.append(row.new_tensor(-torch.inf))
        return torch.stack(values), torch.stack(gradients)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The program's own Pyro; errors that only tracing causes are explained."""
        try:
            with private_pyro(self.dtype, self.device):
                yield
        except torch.linalg.LinAlgError:
            raise
        except (RuntimeError, TypeError, NotImplementedError) as error:
            message = blame(error)
            raise message from (None if message is error else error)

    def _check_values(self, values: Mapping[str, Tensor]) -> None:
        missing = sorted(set(self.sites) - set(values))
        if missing:
            raise DataError(f"density: values must be given for every site, {missing} are missing; add them")


def _prepare(
    model: Callable[..., Any] | Model,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Program, tuple[Any, ...], dict[str, Any]]:
    """A private program and arguments in ``dtype`` on ``device``."""
    program: Program = model
    if isinstance(model, Model):
        program = copy_model(model).to(device, dtype).requires_grad_(False).model
    elif isinstance(model, nn.Module):
        program = copy.deepcopy(model).to(device, dtype).requires_grad_(False)
        make_local([program])
    keywords = {name: cast(arg, dtype, device) for name, arg in kwargs.items()}
    return program, tuple(cast(arg, dtype, device) for arg in args), keywords


def device_of(model: object, args: tuple[object, ...]) -> torch.device:
    """The device of the first tensor of the arguments or of the model."""
    own = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return next((value.device for value in (*args, *own) if isinstance(value, Tensor)), torch.device("cpu"))


@contextmanager
def private_pyro(dtype: torch.dtype, device: torch.device | None = None) -> Iterator[None]:
    """Run with a private Pyro parameter store, and with ``dtype`` and ``device`` as torch's defaults."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with isolated(), nullcontext() if device is None or device.type == "cpu" else device:
            yield
    finally:
        torch.set_default_dtype(before)


def _check_noise(rough: Density, exact: Density) -> None:
    """Refuse a density whose differences between points, which are all that a sampler sees, are rounded too much."""
    v = exact.start(NOISE_POINTS, torch.Generator().manual_seed(0))
    value = exact.log_density(v)
    noise = (rough.log_density(v.to(rough.dtype)).double() - value)[torch.isfinite(value)]
    worst = float((noise - noise.mean()).abs().max()) if len(noise) else 0.0
    if not worst <= NOISE:
        raise FitError(
            f"density: rounding in {rough.dtype} must move the log density by less than {NOISE} nat, got {worst:.3g}; "
            "use float64, the default"
        )
