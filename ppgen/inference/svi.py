r"""Stochastic variational inference: a guide, raised towards the posterior by stochastic gradients of the bound.

The bound of the two Pyro programs is traced once into a graph of tensor operators, gradient included, and compiled
where the run is long enough. What the model sums out is not sampled; see :mod:`ppgen.inference.objective` for the
gradient of each latent site.

With ``early_stopping`` the mean bound of each window of 200 steps is compared with that of the one before; when it has
not risen by more than its own noise, the learning rate is divided by ten, and after the third time the fit has
converged. With held-out rows it is their bound that must rise.

References: Hoffman et al. (2013); Kingma & Welling (2014); Kucukelbir et al. (2017).
"""

import hashlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from ppgen.data.arrays import as_observations, to_tensor
from ppgen.errors import DataError, FitError
from ppgen.inference.density import density, quiet
from ppgen.inference.guides import NAMES, Laplace, copy_model, named_guide
from ppgen.inference.objective import Objective
from ppgen.inference.parallel import Group, group
from ppgen.inference.parameters import Parameters, declared_by
from ppgen.inference.predictive import missing_share
from ppgen.inference.program import Function
from ppgen.inference.sites import learn
from ppgen.inference.tracing import Batch, Mode, blame, build
from ppgen.inference.training import SCHEDULES, Options, Rows, Run
from ppgen.model import Model
from ppgen.results.arguments import as_inputs, require_at_least
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Draws
from ppgen.results.rebuild import describe
from ppgen.rng import private_stream

__all__ = ["fit"]

log = logging.getLogger(__name__)

MODES = ("auto", "compiled", "traced", "eager")
HELD_OUT_PARTICLES = 16  # draws of the guide that a bound of held-out rows averages over

Guide = str | Callable[..., Any] | None


def fit(
    model: Model | Callable[..., Any],
    *args: Any,  # noqa: ANN401 (the program's own)
    u: object = None,
    guide: Guide = None,
    max_steps: int = 10_000,
    lr: float = 0.01,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: str | Callable[[int], float] | None = None,
    warmup: int = 0,
    clip: float | None = None,
    batch_size: int | None = None,
    particles: int = 1,
    averaging: bool = False,
    early_stopping: bool = True,
    held_out: object = None,
    held_out_u: object = None,
    draws: int = 1000,
    compile: str = "auto",  # noqa: A002 (the keyword of every engine)
    dtype: torch.dtype | None = None,
    device: str = "auto",
    random_seed: int | None = None,
    progressbar: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
) -> Fit:
    """Fit a guide to the posterior of a Pyro program, and the program's own parameters with it.

    Parameters
    ----------
    model : a `Model`, or any function with ``pyro.sample`` sites. It is not changed; the fit holds a copy.
    args : of a `Model` the observations ``x``, anything :func:`ppgen.data.as_observations` takes, NaN is not
        observed; of a function its arguments.
    u : inputs of a `Model`, a row per row of ``x``.
    guide : ``"mean_field"``, ``"full_rank"``, ``"low_rank"``, ``"laplace"``, ``"flow"``, or a guide of your own, called
        as the model is (a module with parameters is trained itself, not a copy). None is the model's own; a model
        without one gets ``"mean_field"``.
    max_steps : at most this many gradient steps.
    lr : learning rate at the start.
    optimizer : a class of ``torch.optim``, or any function of ``(parameters, lr=)``; Adam by default.
    schedule : ``"plateau"`` (see above; the default with ``early_stopping``), ``"constant"`` (the default without),
        ``"cosine"`` to zero at ``max_steps``, or a function of the step that gives a factor.
    warmup : steps over which the learning rate rises from zero.
    clip : largest norm of a gradient, in nats per unit of the unconstrained parameters; longer ones are shortened.
    batch_size : rows or sequences of a step's minibatch (of a `Model`); None uses all of them.
    particles : draws of the guide a step, made at once.
    averaging : give back an average of the parameters over the steps, late ones weighing more (Polyak & Juditsky 1992).
    early_stopping : stop when the bound has settled; without it all steps are taken.
    held_out : observations whose bound is looked at every 200 steps, instead of the smoothed one; the parameters with
        the best are given back. ``held_out_u`` are their inputs.
    draws : draws of the trained guide to keep.
    compile : see :meth:`ppgen.inference.density.Density.batch`; a program that cannot be traced runs eagerly with
        ``"auto"``, which the log says.
    dtype : of parameters and data while training; that of the model's parameters by default, else float64. The fit
        answers in float64.
    device : ``"auto"`` (a model's own), ``"cpu"``, ``"cuda"`` or another of torch's.
    checkpoint : folder; the run is saved there and goes on from there, bit for bit, if it holds this fit.
    checkpoint_every : steps between saves.

    Under ``torchrun`` all processes must be given the same; each works on its rows of every batch.

    Returns
    -------
    Fit
        Its posterior is `Draws` (one chain of independent draws of the guide).

    Raises
    ------
    DataError : data or options that cannot be used.
    FitError : a loss or gradient that is not finite, or a guide that does not fit the model.
    FileError : a checkpoint of another fit.
    """
    options = _options(
        lr=lr, optimizer=optimizer, schedule=schedule, warmup=warmup, clip=clip, batch_size=batch_size,
        particles=particles, averaging=averaging, early_stopping=early_stopping,
    )  # fmt: skip
    _check_options({"max_steps": max_steps, "draws": draws, "checkpoint_every": checkpoint_every}, compile, guide)
    began = time.perf_counter()
    place = _device(device)
    task = _read(model, args, u, dtype, place)
    _check_batch(task, options)
    outside = None if held_out is None else _read(task.model, (held_out,), held_out_u, task.dtype, place)
    with private_stream(random_seed) as seed, quiet(task.dtype), group(place) as processes:
        objective, parameters, named = _prepare(task, guide, options.batch_size)
        engine = _Engine(task, objective, parameters, options, outside, cast(Mode, compile), max_steps, processes)
        identity = _identity(task, options, guide, compile, random_seed)
        run = Run(
            engine.gradient, parameters, options, engine.batch(seed), engine.held_out, engine.lost,
            scored=len(objective.plan.scored), max_steps=max_steps, seed=seed, group=processes, identity=identity,
        )  # fmt: skip
        saved = None if checkpoint is None else Path(checkpoint) / "svi.safetensors"
        run.resume(saved)
        interrupted = _train(run, saved, checkpoint_every, progressbar and processes.first)
        run.finish()
        if isinstance(named, Laplace):
            _finish_laplace(named, task)
        _, declared = parameters.split(parameters.flat())
        sites, log_q = objective.draw(draws, task.args, task.kwargs, declared)
    attrs = {
        "engine": "svi",
        "guide": guide if isinstance(guide, str) else "mean_field" if named is not None else "own",
        "random_seed": seed,
        "converged": run.progress.converged,
        "interrupted": interrupted,
        "seconds": time.perf_counter() - began,
        "compile": engine.built.mode,
        "compile_reason": engine.built.reason,
        "compile_seconds": engine.built.seconds,
        "gradients": objective.plan.words(),
        **({} if task.observations is None else {"missing_share": missing_share(task.model, task.args[0])}),
    }
    posterior = Draws({name: value[None].cpu() for name, value in sites.items()}, {"log_q": log_q[None].cpu()})
    labels = xr.DataArray(0.0) if task.observations is None else task.observations
    return fit_result(_plain(task.model), posterior, run.history(), attrs, labels)


@final
@dataclass(frozen=True, eq=False)
class _Task:
    """What is fitted: a private model, labelled data if there are any, and what its programs are called with."""

    model: Model
    observations: xr.DataArray | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Rows of the data; of a function, whose data cannot be split, one."""
        return 1 if self.observations is None else len(self.args[0])


@final
class _Engine:
    """The bound's gradient as one function of flat parameters and a batch: traced, compiled or eager."""

    def __init__(
        self,
        task: _Task,
        objective: Objective,
        parameters: Parameters,
        options: Options,
        outside: _Task | None,
        mode: Mode,
        max_steps: int,
        processes: Group,
    ) -> None:
        self.task, self.objective, self.parameters, self.options = task, objective, parameters, options
        self.processes, self.types = processes, len(parameters.types)
        if options.batch_size is not None and options.batch_size % processes.size:
            raise DataError(
                f"svi: batch_size must be a multiple of the {processes.size} processes, got {options.batch_size}"
            )
        if options.batch_size is None and processes.size > 1:
            raise DataError(f"svi: batch_size must be given to share a batch among {processes.size} processes")
        examples = [*parameters.flat(), self._baselines(), *self.batch(0)(0)]
        self.built = _build(self._graph, self._eager, examples, mode, max_steps)
        self.held_out = None if outside is None else self._evaluator(outside, mode)

    def gradient(self, *inputs: Tensor) -> Sequence[Tensor]:
        """See `ppgen.inference.training.Gradient`."""
        return self.built(*inputs)

    def batch(self, seed: int) -> Callable[[int], Sequence[Tensor]]:
        """What comes at each step beside the parameters: rows of data and inputs; nothing when all are used."""
        size = self.options.batch_size
        if size is None:
            return lambda _: ()
        rows, x, u = Rows(self.task.rows, size, seed), self.task.args[0], self.task.kwargs["u"]

        def at(step: int) -> Sequence[Tensor]:
            index = self.processes.share(rows.at(step)).to(x.device)
            return (x[index],) if u is None else (x[index], u[index])

        return at

    def lost(self, flat: Sequence[Tensor]) -> str:
        """Name the first site whose log density is not finite, in the words of a message."""
        self.parameters.store(flat)
        _, declared = self.parameters.split(flat)
        site = self.objective.bad_site(*self._call(self.batch(0)(0)), declared)
        return f' (site "{site}")' if site else ""

    def _baselines(self) -> Tensor:
        return torch.zeros(len(self.objective.plan.scored))

    def _call(self, data: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the programs for a batch, or for everything."""
        if not data:
            return self.task.args, self.task.kwargs
        return (data[0],), {**self.task.kwargs, "u": data[1] if len(data) > 1 else None}

    def _graph(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Bound, baselines and gradients of minus the bound; all particles at once."""
        return self._gradient(inputs, self.options.particles)

    def _eager(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The same, one particle after the other."""
        particles = self.options.particles
        found = [self._gradient(inputs, 1) for _ in range(particles)]
        return found[0] if particles == 1 else [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]

    def _gradient(self, inputs: Sequence[Tensor], particles: int) -> Sequence[Tensor]:
        flat = [vector.detach().requires_grad_() for vector in inputs[: self.types]]
        baselines, data = inputs[self.types], inputs[self.types + 1 :]
        with torch.enable_grad():
            surrogate, bound, means = self._estimate(flat, baselines, data, particles)
            gradients = torch.autograd.grad(-surrogate, flat, allow_unused=True, materialize_grads=True)
        return bound.detach(), means.detach(), *gradients

    def _estimate(
        self, flat: Sequence[Tensor], baselines: Tensor, data: Sequence[Tensor], particles: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        own, declared = self.parameters.split(flat)
        found: tuple[Tensor, Tensor, Tensor] = functional_call(
            self.objective, own, (*self._call(data), declared, baselines, particles)
        )
        return found

    def _evaluator(self, outside: _Task, mode: Mode) -> Callable[[Sequence[Tensor]], float]:
        """The bound of held-out rows, always by the same random numbers."""

        def bound(*flat: Tensor) -> Sequence[Tensor]:
            own, declared = self.parameters.split(flat)
            call = (outside.args, outside.kwargs, declared, self._baselines(), HELD_OUT_PARTICLES)
            return (functional_call(self.objective, own, call)[1],)

        def by_one(*flat: Tensor) -> Sequence[Tensor]:
            own, declared = self.parameters.split(flat)
            call = (outside.args, outside.kwargs, declared, self._baselines(), 1)
            return (
                torch.stack([functional_call(self.objective, own, call)[1] for _ in range(HELD_OUT_PARTICLES)]).mean(),
            )

        built = _build(bound, by_one, list(self.parameters.flat()), mode, 0)

        def evaluate(flat: Sequence[Tensor]) -> float:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                return float(built(*flat)[0])

        return evaluate


def _build(
    graph: Callable[..., Sequence[Tensor]],
    eager: Callable[..., Sequence[Tensor]],
    examples: Sequence[Tensor],
    mode: Mode,
    calls: int,
) -> Batch:
    """Trace (and compile) ``graph``; or ``eager``, where that is asked for or nothing else works."""
    if mode == "eager":
        return Batch(eager, "eager", "asked for")
    try:
        return build(graph, examples, mode, calls)
    except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
        told = blame(error)
        if mode != "auto":
            raise told from (None if told is error else error)
        reason = str(told).split("\n")[0]
        log.warning("svi: the bound cannot be traced and runs eagerly, which is slower: %s", reason)
        return Batch(eager, "eager", reason)


def _prepare(task: _Task, guide: Guide, batch_size: int | None) -> tuple[Objective, Parameters, nn.Module | None]:
    """The bound, its parameters, and the named guide if it is one."""
    model, kwargs = task.model, task.kwargs
    args = task.args if batch_size is None else (task.args[0][:batch_size],)
    if batch_size is not None and kwargs["u"] is not None:
        kwargs = {**kwargs, "u": kwargs["u"][:batch_size]}
    program: Callable[..., Any] = model.function if isinstance(model, Function) else model.model
    own = not isinstance(model, Function) and type(model).guide is not Model.guide
    named = None
    if guide is None and own:
        q: Callable[..., Any] = model.guide
    elif guide is None or isinstance(guide, str):
        sites = learn(program, args, kwargs, minibatch=True).sites
        q = named = named_guide(guide or "mean_field", sites).to(_place(args))
    else:
        q = guide
        _make_local(_owners(guide))
    owners = [model, *_owners(program), *_owners(q)]
    objective = Objective(program, q, tuple(dict.fromkeys(owners)))
    q(*args, **kwargs)  # a guide may make its parameters when it first sees data
    with declared_by(objective) as declared:
        objective.learn(args, kwargs)
    parameters = Parameters(objective, declared)
    if not parameters.leaves:
        raise FitError(f"svi: the guide of {type(model).__name__} must have parameters to train, it has none")
    return objective, parameters, named


def _owners(program: Callable[..., Any]) -> list[nn.Module]:
    """The module whose method a program is, or the program itself."""
    owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    return [owner] if isinstance(owner, nn.Module) else []


def _make_local(modules: Sequence[nn.Module]) -> None:
    """Let Pyro modules that were made outside run with parameters of their own, as all do here."""
    for module in (part for owner in modules for part in owner.modules()):
        context = getattr(module, "_pyro_context", None)
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}  # what Pyro gives those made inside


def _place(args: Sequence[object]) -> torch.device:
    return next((arg.device for arg in args if isinstance(arg, Tensor)), torch.device("cpu"))


def _finish_laplace(guide: Laplace, task: _Task) -> None:
    """Newton steps to the mode of the density, and its curvature there."""
    program = task.model.function if isinstance(task.model, Function) else task.model
    target = density(program, *task.args, **{key: value for key, value in task.kwargs.items() if key != "total"})
    guide.double()
    guide.finish(lambda v: target.value_and_grad(v.double())[1])
    guide.to(task.dtype)


def _train(run: Run, saved: Path | None, every: int, progressbar: bool) -> bool:
    """Step until settled or out of steps; whether it was interrupted. The checkpoint keeps the last good state."""
    with tqdm(total=run.max_steps, initial=run.steps, desc="svi", disable=not progressbar, delay=1) as bar:
        try:
            while not run.over:
                run.step()
                bar.update()
                if run.steps % every == 0:
                    bar.set_postfix_str(f"ELBO {run.progress.bounds[-1]:,.1f}", refresh=False)
                    run.save(saved)
        except KeyboardInterrupt:
            if not run.steps:
                raise
            return True
    run.save(saved)
    run.group.wait()
    return False


def _read(
    model: Model | Callable[..., Any], args: tuple[Any, ...], u: object, dtype: torch.dtype | None, device: torch.device
) -> _Task:
    """A private model, the labelled data if there are any, and the arguments of its programs, in one type."""
    if not isinstance(model, Model):
        if u is not None:
            raise DataError("svi: u is for models; pass what a function takes as further arguments")
        dtype = dtype or _own_type(_owners(model))
        tensors = tuple(_cast(arg, dtype, device) for arg in args)
        return _Task(Function(model, args), None, tensors, {}, dtype)
    if len(args) != 1:
        raise DataError(f"svi: a model takes its data x and nothing else in order, got {len(args)} arguments")
    observations = as_observations(args[0], dims=model.data_dims)
    data = to_tensor(observations)
    inputs = as_inputs("svi", u, data)
    model.check(data)
    dtype = dtype or _own_type([model])
    model = copy_model(model).to(device=device, dtype=dtype)
    call = {"u": None if inputs is None else inputs.to(device=device, dtype=dtype), "total": len(data)}
    return _Task(model, observations, (data.to(device=device, dtype=dtype),), call, dtype)


def _own_type(modules: Sequence[nn.Module]) -> torch.dtype:
    """The type of the parameters of modules, float64 if they have none.

    Raises
    ------
    DataError : they have several.
    """
    types = {p.dtype for module in modules for p in module.parameters() if p.is_floating_point()}
    if len(types) > 1:
        raise DataError(f"svi: parameters must be of one type, got {sorted(map(str, types))}; pass dtype=")
    return next(iter(types), torch.float64)


def _cast(value: object, dtype: torch.dtype, device: torch.device) -> object:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.tensor(value)
    if isinstance(value, Tensor):
        value = value.detach().to(device)
        return value.to(dtype) if value.is_floating_point() else value
    return value


def _plain(model: Model) -> Model:
    """The trained model as a `Fit` holds it: on the CPU, in float64, whatever it was trained in."""
    return model.to(device="cpu", dtype=torch.float64)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"svi: device must be one that torch has here, got {name!r} ({error})") from error


def _options(**given: Any) -> Options:  # noqa: ANN401 (the fields of `Options`)
    """Options, refused in words where they cannot be."""
    require_at_least("svi: particles", given["particles"], 1)
    require_at_least("svi: warmup", given["warmup"], 0)
    if not 0 < given["lr"] < math.inf:
        raise DataError(f"svi: lr must be positive, got {given['lr']}; 0.01 is usual")
    if given["clip"] is not None and not 0 < given["clip"] < math.inf:
        raise DataError(f"svi: clip must be positive, got {given['clip']}; 10 is usual")
    schedule = given.pop("schedule") or ("plateau" if given["early_stopping"] else "constant")
    if not callable(schedule) and schedule not in SCHEDULES:
        raise DataError(f"svi: schedule must be one of {SCHEDULES} or a function of the step, got {schedule!r}")
    return Options(schedule=schedule, **given)


def _check_options(counts: dict[str, int], mode: str, guide: Guide) -> None:
    for name, value in counts.items():
        require_at_least(f"svi: {name}", value, 1)
    if mode not in MODES:
        raise DataError(f"svi: compile must be one of {MODES}, got {mode!r}")
    if guide is not None and not callable(guide) and guide not in NAMES:
        raise DataError(f"svi: guide must be one of {NAMES}, a function or a module, got {guide!r}")


def _check_batch(task: _Task, options: Options) -> None:
    size = options.batch_size
    if size is None:
        return
    if task.observations is None:
        raise DataError(
            "svi: batch_size is for models, which are told how many rows stand behind a batch; subclass ppgen.Model"
        )
    if not 1 <= size <= task.rows:
        raise DataError(f"svi: batch_size must be between 1 and the {task.rows} rows of x, got {size}")


def _identity(task: _Task, options: Options, guide: Guide, mode: str, random_seed: int | None) -> str:
    """Digest of what makes two runs the same run."""
    kind = guide if isinstance(guide, str) or guide is None else getattr(guide, "__qualname__", type(guide).__name__)
    digest = hashlib.sha256(
        repr((options.words(), kind, mode, random_seed, str(task.dtype), torch.__version__)).encode()
    )
    tensors: dict[str, Tensor] = {}
    if isinstance(task.model, Function):
        digest.update(_source(task.model.function).encode())
    else:
        description, tensors = describe(task.model)
        digest.update(repr(description).encode())
    for value in [*task.args, task.kwargs.get("u"), *tensors.values()]:
        if isinstance(value, Tensor):
            digest.update(repr(tuple(value.shape)).encode() + value.numpy(force=True).tobytes())
    return digest.hexdigest()


def _source(function: Callable[..., Any]) -> str:
    """The text of a function, or its name where there is none."""
    try:
        return inspect.getsource(partial(function).func)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", repr(type(function)))
