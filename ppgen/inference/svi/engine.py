r"""Stochastic variational inference: a guide, raised towards the posterior by stochastic gradients of the bound.

The bound of the two Pyro programs is traced once into a graph of tensor operators, gradient included, and compiled
where the run is long enough. What the model sums out is not sampled; see :mod:`ppgen.inference.svi.objective` for the
gradient of each latent site.

A guide by name that draws from a normal distribution climbs its bound over fixed draws until its natural gradient is
small (``climbing``): it is then as wide as the best of its kind, in whatever units. Every other run
takes small noisy steps (``training``).

References: Hoffman et al. (2013); Kingma & Welling (2014); Kucukelbir et al. (2017).
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from ppgen.arguments import as_device, as_dtype, as_folder
from ppgen.errors import DataError, FitError
from ppgen.inference.svi.bound import Bound
from ppgen.inference.svi.climbing import Climb, first_draws
from ppgen.inference.svi.fixed_draws import FixedDraws
from ppgen.inference.svi.guides import Laplace, NormalGuide, Point
from ppgen.inference.svi.identity import behaviour, identity_of
from ppgen.inference.svi.natural import NaturalGuide
from ppgen.inference.svi.objective import Objective
from ppgen.inference.svi.options import Guide, Options, check_batch, check_options, options_of
from ppgen.inference.svi.parallel import group, own_device, world_size
from ppgen.inference.svi.preparation import held_out_task, own_copy, prepare, read_task, types
from ppgen.inference.svi.restarts import Restarts
from ppgen.inference.svi.training import RISE, Run
from ppgen.inference.svi.types import keeps_types
from ppgen.keywords import known_keywords
from ppgen.model import Model
from ppgen.predictions.predictive import missing_share
from ppgen.programs.density import density, device_of, private_pyro
from ppgen.programs.memory import memory, remember
from ppgen.programs.parameters import Parameters, ParametersAt, learnt_by
from ppgen.programs.rows import reads_rows, remember_row_sites
from ppgen.programs.task import Task
from ppgen.programs.threads import limited
from ppgen.programs.tracing import Mode
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Draws, Factors
from ppgen.results.shared import with_shared
from ppgen.rng import private_stream, seed_device
from ppgen.storage.lock import held

__all__ = ["fit"]


MOST_STEPS, STEPS = 100_000, 10_000
MOST_CLIMBED = 1000  # steps to a maximum, by default: a density without one is climbed for ever
MOST_OWN = 1000  # parameters of the program itself that are learnt over fixed draws; more are left to small steps


@known_keywords("svi")
def fit(
    model: Model | Callable[..., Any],
    *args: Any,  # noqa: ANN401 (the program's own)
    u: object = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    guide: Guide = None,
    max_steps: int | None = None,
    lr: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: str | Callable[[int], float] | None = None,
    warmup: int = 0,
    clip: float | None = None,
    batch_size: int | None = None,
    particles: int | None = None,
    bound: str = "elbo",
    averaging: bool = False,
    early_stopping: bool = True,
    n_init: int = 1,
    delay: float = 1.0,
    forgetting: float = 0.7,
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
    args : for a `Model` the observations ``x``, in any form that :func:`ppgen.data.as_observations` takes (NaN is "not
        observed"); for a function its arguments.
    u : inputs of a `Model`, with a row for each row of ``x``: an array, a table, or a dict of them by name. Whole
        numbers in a dict stay whole, so that they can be indices (of a group, say). Those of a time series may come
        sequence by sequence, each as long as its own, in a dict by the names of the sequences or in a list.
    dims, coords : names of the axes of a function's sites, {site: axes}, and the labels along them, {axis: labels};
        a `Model` has its own.
    guide : ``"mean_field"``, ``"full_rank"``, ``"low_rank"``, ``"laplace"``, ``"flow"``, ``"map"`` (one value of every
        site, where their density in their own units is largest), or a guide of your own, called with the arguments of
        the model (a module is itself trained, not a copy). None is the model's own guide; a model without one gets
        ``"mean_field"``. A conjugate model gets its factors, trained along natural gradients beside the optimiser.
    max_steps : largest number of steps: 100,000, or 10,000 without ``early_stopping``, or 1,000 for ``"map"``.
    lr : learning rate at the start, 0.01 by default. This and the options down to ``early_stopping`` belong to small
        noisy steps: a guide by name takes such steps if one of them is set.
    optimizer : a class of ``torch.optim``, or any function of ``(parameters, lr=)``; Adam by default.
    schedule : ``"plateau"`` (divided by ten when the bound has stopped rising; the default with ``early_stopping``),
        ``"constant"`` (the default without), ``"cosine"`` to zero at ``max_steps``, or a function of the step that
        gives a factor.
    warmup : steps over which the learning rate rises from zero.
    clip : largest norm of a gradient, in nats per unit of the unconstrained parameters; longer ones are shortened. By
        default ten times the median of the last hundred.
    particles : draws of the guide at each step, made at once; 1 by default.
    bound : ``"elbo"``, or ``"iwae"``, the importance-weighted bound: the logarithm of the mean weight of ``particles``
        draws of each row's own latents. See :mod:`ppgen.inference.svi.weighted`.
    averaging : return an average of the parameters over the steps, late ones weighing more (Polyak & Juditsky 1992).
    early_stopping : stop when the guide has settled; otherwise all steps are taken.
    n_init : number of starts, for a guide by name without options of small steps: the first near the middle, the others
        drawn from the prior. The fit with the highest bound is kept; ``attrs["restart_elbos"]`` holds all bounds.
    batch_size : rows or sequences of a step's minibatch (for a `Model`); None uses all of them. A guide by name takes
        as many such batches together as fit in 130 MB, and at the end all rows.
    delay, forgetting : step sizes ``(step + delay) ** -forgetting`` of a conjugate model's factors along their natural
        gradients in minibatches; with all rows these steps have size one.
    held_out : observations whose bound is computed every 200 steps, instead of that of the data; the parameters with
        the best one are returned. ``held_out_u`` are their inputs.
    draws : draws of the trained guide to keep; ``"map"`` has one.
    compile : see :meth:`ppgen.programs.density.Density.batch`; a program that cannot be traced runs eagerly with
        ``"auto"``, which the log says.
    dtype : type of parameters and data in training; by default that of the model's parameters, else float64. Parameters
        of several types keep theirs beside data in float64, as networks do beside factors. The fit answers in float64,
        and its parameters are then of that type too, unless the program casts at the border of its networks.
    device : ``"auto"`` (that of the model), ``"cpu"``, ``"cuda"`` or another of torch's.
    checkpoint : folder for checkpoints. Call `fit` again with the same arguments to resume, bit for bit.
    checkpoint_every : steps between saves.

    Under ``torchrun`` all processes must get the same arguments; each works on its rows of every batch.

    Returns
    -------
    Fit : its posterior is `Draws` (one chain of independent draws of the guide).

    Raises
    ------
    DataError : data or options that cannot be used.
    FitError : a loss or gradient that is not finite, or a guide that does not fit the model.
    FileError : a checkpoint of another fit.
    """
    options = options_of(
        lr=lr, optimizer=optimizer, schedule=schedule, warmup=warmup, clip=clip, batch_size=batch_size,
        particles=particles, averaging=averaging, early_stopping=early_stopping, bound=bound, delay=delay,
        forgetting=forgetting,
    )  # fmt: skip
    if max_steps is None:
        most = MOST_CLIMBED if guide == "map" and options.unset else MOST_STEPS
        max_steps = most if early_stopping else STEPS
    counts = {"max_steps": max_steps, "draws": draws, "checkpoint_every": checkpoint_every, "n_init": n_init}
    check_options(counts, compile, guide)
    began = time.perf_counter()
    folder = as_folder("svi", checkpoint)
    hardware = own_device(as_device("svi", device) or device_of(model, args))
    dtype, keep = types(model, guide, dtype)
    task = read_task(model, args, u, as_dtype("svi", dtype), hardware, keep=keep, dims=dims, coords=coords)
    check_batch(task, options, world_size())
    guide = own_copy(guide, model, task)
    outside = held_out_task(task, held_out, held_out_u, dtype, hardware)
    with private_stream(random_seed) as seed, private_pyro(dtype), group(hardware) as processes, ExitStack() as stack:
        stack.enter_context(held(folder if processes.first else None, "svi"))
        stack.enter_context(task.explained("svi"))
        objective, parameters, named = prepare(task, guide, options)
        more = (compile, str(dtype), random_seed, behaviour(task, objective, parameters))
        identity = identity_of(task, outside, options, guide, more)
        run: Run | Climb | Restarts | None = None
        if options.unset and outside is None and processes.size == 1:
            run = _climb(
                task, objective, parameters, named, cast(Mode, compile), options, n_init,
                max_steps=max_steps, seed=seed, identity=identity,
            )  # fmt: skip
        if run is None and n_init > 1:
            raise DataError(
                f"svi: n_init above 1 is for a guide by name over fixed draws, got {n_init}; leave out lr and the "
                "other options of small steps, or fit several times with seeds of your own"
            )
        if run is None:
            way = "eager" if compile == "auto" and _is_ascent(parameters, options) else compile
            climbed = Bound(task, objective, parameters, options, outside, cast(Mode, way), max_steps, processes)
            run = Run(
                climbed.gradient, parameters, options, climbed.batch, climbed.evaluate, climbed.fault,
                held_out=outside is not None, local=objective.plan.local, rise=RISE * _numbers(objective, named) ** 0.5,
                scored=len(objective.plan.scored), max_steps=max_steps, seed=seed, group=processes, identity=identity,
            )  # fmt: skip
        built = climbed.built if isinstance(run, Run) else run.bound.built
        saved = None if folder is None else folder / "svi.safetensors"
        run.resume(saved)
        with limited(built.threads):
            interrupted = _train(run, saved, checkpoint_every, progressbar and processes.first)
        processes.wait()
        run.finish()
        if isinstance(named, Laplace):
            _finish_laplace(named, task, dtype)
        _, declared = parameters.split(parameters.flat())
        seed_device(run.seed, hardware)  # the same draws whether or not steps were made in this process
        q = task.model.guide if isinstance(named, NaturalGuide) else objective.programs[1]
        keep = keep or keeps_types(task, q, declared)
        own = _remember_rows(task, q, declared, keep=keep)
        posterior = _posterior(objective, named, task, draws, declared, own)
        remember(task.model, params=learnt_by(task.program, task.args, task.kwargs, declared, keep=keep))
    attrs = {
        "engine": "svi",
        "bound": bound,
        "guide": _name_of(guide, named),
        "random_seed": run.seed,
        "interrupted": interrupted,
        "seconds": time.perf_counter() - began,
        "compile": built.mode,
        "compile_reason": built.reason,
        "compile_seconds": built.seconds,
        **run.words(),
        "gradients": objective.plan.words(),
        **({} if task.observations is None else {"missing_share": missing_share(task.model, task.args[0])}),
    }
    labels = xr.DataArray(0.0) if task.observations is None else task.observations
    history = run.history()
    if isinstance(named, Laplace | Point):  # what they climb is no bound
        history = history.rename(columns={"elbo": "log_joint", "fixed_elbo": "fixed_log_joint"})
    trained = task.to(torch.device("cpu"), torch.float64, keep=keep)
    data = trained.args[0] if trained.args else None
    posterior = with_shared(trained.model, posterior, data, trained.kwargs.get("u"), run.seed)
    return fit_result(trained.model, posterior, history, attrs, labels, task.inputs)


def _numbers(objective: Objective, named: nn.Module | None) -> int:
    """Latent numbers that the bound is about."""
    factors = sum(value.numel() for value in named.parameters()) if isinstance(named, NaturalGuide) else 0
    return objective.plan.numbers + factors


def _is_ascent(parameters: Parameters, options: Options) -> bool:
    """Tell whether each step is one of coordinate ascent: there are few, too few to trace a graph for."""
    return all(parameters.are_apart) and options.batch_size is None


def _climb(
    task: Task,
    objective: Objective,
    parameters: Parameters,
    guide: nn.Module | None,
    mode: Mode,
    options: Options,
    n_init: int,
    *,
    max_steps: int,
    seed: int,
    identity: str,
) -> Climb | Restarts | None:
    """A run over fixed draws, where the guide is one by name and the program itself draws nothing; else None."""
    if not isinstance(guide, NormalGuide | Laplace | Point) or parameters.types != (torch.float64,):
        return None
    if parameters.flat()[0].numel() - sum(value.numel() for value in guide.parameters()) > MOST_OWN:
        return None
    bound = FixedDraws(
        task,
        objective,
        parameters,
        guide,
        mode=mode,
        batch_size=options.batch_size,
        draws=first_draws(guide),
        seed=seed,
    )
    if bound.is_random():
        return None

    def begin(seed: int) -> Climb:
        return Climb(bound, parameters, guide, max_steps=max_steps, seed=seed, identity=identity)

    run = begin(seed)
    run.check()
    if n_init == 1:
        return run
    prior = partial(task.program, *task.args, **task.kwargs)
    return Restarts(run, begin, prior, parameters, guide, n_init)


def _name_of(guide: Guide, named: nn.Module | None) -> str:
    if isinstance(guide, str):
        return guide
    return "own" if named is None else "factors" if isinstance(named, NaturalGuide) else "mean_field"


def _posterior(
    objective: Objective, named: nn.Module | None, task: Task, draws: int, declared: dict[str, Tensor],
    own: Collection[str],
) -> Draws | Factors:  # fmt: skip
    """The posterior of the parameters: factors as they are, or draws of the guide.

    Raises
    ------
    FitError : rows share latents beside the factors.
    """
    if isinstance(named, NaturalGuide):
        shared = sorted(set(objective.plan.shapes) - set(memory(task.model).of_rows))
        if shared:
            raise FitError(
                f"svi: latents that rows share must be drawn by a factor of natural_prior, got site {shared[0]!r}; "
                'make it a factor or a point, or use guide="mean_field"'
            )
        return named.posterior()
    count, rows = 1 if isinstance(named, Point) else draws, memory(task.model).row_plates or None
    found = objective.draw(count, task.args, task.kwargs, declared, own, rows)
    return Draws(*({name: _kept(value) for name, value in part.items()} for part in found))


def _remember_rows(task: Task, guide: Callable[..., Any], declared: dict[str, Tensor], *, keep: bool) -> frozenset[str]:
    """Plates over the rows, where these own latents that a guide knows of for any rows, which the model remembers."""
    sites = remember_row_sites(task)
    if not sites:
        return frozenset()
    with ParametersAt(declared):
        if not reads_rows(guide, task.model, task.args[0], task.kwargs.get("u"), sites):
            return frozenset()
    learnt = learnt_by(guide, task.args, task.kwargs, declared, keep=keep)
    remember(task.model, guide=guide, guide_params=learnt)
    return frozenset(site.plate for site in sites.values())


def _finish_laplace(guide: Laplace, task: Task, dtype: torch.dtype) -> None:
    """Newton steps to the mode of the density, and its curvature there."""
    target = density(task.program, *task.args, **{key: value for key, value in task.kwargs.items() if key != "total"})
    guide.double()
    guide.finish(lambda v: target.value_and_grad(v.double())[1])
    guide.to(dtype)


def _train(run: Run | Climb | Restarts, saved: Path | None, every: int, progressbar: bool) -> bool:
    """Step until settled or out of steps; whether it was interrupted. The checkpoint keeps the last good state."""
    with tqdm(total=run.max_steps, initial=run.steps, desc="svi", disable=not progressbar, delay=1) as bar:
        try:
            while not run.over:
                run.step()
                bar.update()
                if run.steps % every == 0:
                    bar.set_postfix_str(f"ELBO {run.elbo:,.1f}", refresh=False)
                    run.save(saved)
        except KeyboardInterrupt:
            if not run.steps:
                raise
            return True
    run.save(saved)
    return False


def _kept(draws: Tensor) -> Tensor:
    """Draws (S, ...) as a `Fit` holds them: one chain, on the CPU, real numbers in float64."""
    draws = draws[None].cpu()
    return draws.double() if draws.is_floating_point() else draws
