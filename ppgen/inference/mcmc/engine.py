r"""Markov chain Monte Carlo for any Pyro program: many chains at once, on its traced and compiled density.

Two samplers of a density: ``"chees"`` (``chees``, many short chains in one tensor; the default) and ``"nuts"``
(``nuts``, a tree per chain). Both start from Pathfinder and learn from all chains together. What a
model sums out stays summed out; other discrete latents are enumerated where they are small. A third, ``"gibbs"``
(``gibbs``), draws latents and parameters of a conjugate model in turn.

References: Hoffman, Radul & Sountsov (2021); Hoffman & Gelman (2014); Betancourt (2017); Zhang et al. (2022).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import xarray as xr
from torch import Tensor

from ppgen.arguments import as_device, as_dtype, as_folder, require_at_least, require_within
from ppgen.errors import DataError, FitError
from ppgen.inference.mcmc.chains import LEAST, default_chains
from ppgen.inference.mcmc.chees import Chees
from ppgen.inference.mcmc.enough import WANTED, Enough
from ppgen.inference.mcmc.gibbs import gibbs
from ppgen.inference.mcmc.hamiltonian import Leapfrog
from ppgen.inference.mcmc.nuts import Nuts
from ppgen.inference.mcmc.sampling import Run, first_tuning
from ppgen.inference.mcmc.starts import Start, pathfinder, uniform
from ppgen.inference.mcmc.store import DRAWS_SUFFIX, MEMORY, Arrays
from ppgen.keywords import known_keywords
from ppgen.model import Model
from ppgen.predictions.predictive import missing_share
from ppgen.predictions.summed_out import bounded_sites
from ppgen.programs.density import NUMBERS_AT_ONCE, Density, density, device_of, private_pyro
from ppgen.programs.naming import check_dims
from ppgen.programs.program import Function
from ppgen.programs.rows import remember_row_sites
from ppgen.programs.scores import NOTHING_OBSERVED, observes
from ppgen.programs.task import Task, read
from ppgen.programs.threads import limited
from ppgen.programs.tracing import MODES, Mode
from ppgen.programs.untrained import untrained
from ppgen.results.digest import described
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Draws
from ppgen.results.shared import with_shared
from ppgen.rng import private_stream
from ppgen.storage.checkpoint import Checkpoint
from ppgen.storage.lock import held

__all__ = ["fit"]

STARTS = ("pathfinder", "prior", "uniform")
TUNE = {"chees": 300, "nuts": 1000}
SAMPLERS = (*TUNE, "gibbs")
MOST_DRAWS = 1000  # draws of a chain, where no number is given
UNTRAINED = (
    "mcmc: samples the sites of the program alone, and keeps %d learnt tensors as they are (%s); train them by svi.fit "
    "first, or give them priors"
)
DENSE_SIZE, DENSE_DRAWS = 100, 5  # largest P, and draws per dimension in tuning, for a metric with correlations


log = logging.getLogger(__name__)


@known_keywords("mcmc")
def fit(
    model: Model | Callable[..., Any],
    *args: Any,  # noqa: ANN401 (the program's own)
    u: object = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    draws: int | None = None,
    min_ess: float | None = None,
    tune: int | None = None,
    chains: int | None = None,
    sampler: str = "auto",
    target_accept: float | None = None,
    max_tree_depth: int = 10,
    dense_mass: bool | str = "auto",
    start: Fit | str = "pathfinder",
    compile: str = "auto",  # noqa: A002 (the keyword of every engine)
    device: str = "auto",
    dtype: torch.dtype = torch.float64,
    random_seed: int | None = None,
    progressbar: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    memory_limit: int = MEMORY,
) -> Fit:
    """Sample the posterior of every continuous latent site of a Pyro program.

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
    draws : number of draws to keep of each chain; with ``min_ess`` the largest number.
    min_ess : stop when the smallest effective sample size (bulk, tail and mean of every entry of every site, labels
        aligned, and of the log density) reaches this number, but not before 100 draws. By default it is 1000 with at
        most 1000 draws a chain; if only ``draws`` is given, exactly so many are made.
    tune : iterations of each chain before the kept draws, to learn metric and step size; 300 for chees, 1000 for nuts.
    chains : number of chains. By default 64 for chees and 4 for nuts, on CUDA 1024 and 64; chees takes fewer, down to
        16, if a gradient for all of them would be slow or large. A single chain cannot check itself.
    sampler : ``"chees"`` (for ``"auto"``, where the model has a density) or ``"nuts"``; or ``"gibbs"`` for a conjugate
        model: 4 chains that tune nothing, from the model's own ways to start, 200 sweeps before the kept draws. Where
        a density is a bound (`SLDS`, gaps of autoregressions, factorial chains that are held), it draws from the
        posterior itself.
    target_accept : acceptance to adapt the step size to (0.65, harmonic mean, for chees; 0.88, mean of all chains,
        for nuts); nearer 1 takes smaller steps.
    max_tree_depth : nuts makes at most 2 to this power leapfrog steps a draw.
    dense_mass : learn correlations as well as scales; ``"auto"`` does so if there are enough draws for it.
    start : ``"pathfinder"`` (draws from normal approximations found on the way up), ``"prior"``, ``"uniform"``
        (between -2 and 2 on the unconstrained scale), or an earlier fit, from whose draws the chains start.
    compile : see :meth:`ppgen.programs.density.Density.batch`.
    device : ``"auto"`` (where the data or the model are), ``"cpu"``, ``"cuda"`` or another of torch's. Draws come back
        on the CPU.
    dtype : type of the density; float32 is refused where rounding would show.
    random_seed : the same seed gives the same draws on the same machine.
    checkpoint : folder for checkpoints. Call `fit` again with the same arguments to resume; the draws are those of an
        uninterrupted run, bit for bit.
    checkpoint_every : iterations between two checkpoints.
    memory_limit : bytes of draws to keep in memory; more go to temporary files (or the checkpoint's) as they come.

    Returns
    -------
    Fit : its posterior is `Draws`. Ctrl-C ends a run early; the fit then holds the draws made so far.

    Raises
    ------
    DataError : data, options or a program that cannot be used.
    FitError : no starting point with finite density, a program that depends on values, only divergent draws.
    FileError : a checkpoint of another run, or one that cannot be written.
    """
    if min_ess is not None:
        require_at_least("mcmc: min_ess", min_ess, 1)
    if sampler == "auto":
        sampler = "gibbs" if getattr(model, "only_gibbs", False) else "chees"
    wanted = WANTED if draws is None and min_ess is None else min_ess
    draws = MOST_DRAWS if draws is None else draws
    counts = {"draws": draws, "tune": tune, "chains": chains, "checkpoint_every": checkpoint_every}
    require_at_least("mcmc: memory_limit", memory_limit, 0)
    _check_options({**counts, "max_tree_depth": max_tree_depth}, sampler, target_accept, start, compile)
    if sampler == "gibbs":
        _check_gibbs(args, checkpoint=checkpoint, target_accept=target_accept, compile=compile)
        return gibbs(
            model, *args, u=u, draws=draws, min_ess=wanted, tune=tune, chains=chains, start=start,
            random_seed=random_seed, progressbar=progressbar,
        )  # fmt: skip
    folder = as_folder("mcmc", checkpoint)
    hardware = as_device("mcmc", device) or device_of(model, args)
    tune = TUNE[sampler] if tune is None else tune
    began = time.perf_counter()
    task = read("mcmc", model, args, u, dims=dims, coords=coords)
    with private_stream(random_seed) as seed, held(folder, "mcmc"), task.explained("mcmc"):
        program = task.model.function if isinstance(task.model, Function) else task.model
        target = density(program, *task.args, dtype=as_dtype("mcmc", dtype), device=hardware, **task.kwargs)
        with private_pyro(target.dtype, target.device):
            shapes = {name: site.shape for name, site in target.sites.items()}
            if task.observations is not None and not _observes(target):
                raise DataError(NOTHING_OBSERVED.format(who="mcmc", model=type(task.model).__name__))
            check_dims("mcmc", task.model, shapes, target.program, target.args)
            fixed = [] if isinstance(start, Fit) else untrained(target, program)
            if fixed:
                log.warning(UNTRAINED, len(fixed), ", ".join(fixed[:4]) + (", ..." if len(fixed) > 4 else ""))
        chains = chains or (LEAST[sampler] if compile == "eager" else default_chains(target, sampler))
        dense = _dense(dense_mass, target.size, chains * max(tune, 1))
        leapfrog = Leapfrog(target, chains, dense=dense, mode=cast(Mode, compile), calls=0)
        engine = _engine(sampler, leapfrog, target_accept, max_tree_depth)
        options: dict[str, object] = {
            **counts,
            "sampler": sampler,
            "target": engine.target,
            "depth": max_tree_depth,
            "dense": dense,
        }
        options |= {
            "random_seed": random_seed,
            "mode": (compile, leapfrog.batch.mode),
            "start": described(start),
            "min_ess": wanted,
        }
        enough = None if wanted is None else Enough(task.model, target, wanted)
        with limited(leapfrog.batch.threads):
            saved = None
            if folder is not None:
                saved = Checkpoint(
                    "mcmc", folder / "mcmc.safetensors", _identity(leapfrog, task.args, options), beside=[DRAWS_SUFFIX]
                )
            run = _begin(leapfrog, engine, start, seed, (tune, draws), Arrays(folder, memory_limit), saved, enough)
            run.go(progressbar, saved, checkpoint_every)
        posterior = _gather(run, target)
        remember_row_sites(task)
        bounded = _bounded(task, posterior)
        first = task.args[0] if task.args else None
        whole = with_shared(task.model, posterior, first, task.kwargs.get("u"), seed)
    attrs = {
        "engine": "mcmc",
        "sampler": sampler,
        "random_seed": seed,
        "interrupted": run.interrupted,
        "seconds": time.perf_counter() - began,
        "tune": tune,
        "stopped": run.why(),
        "bounded_sites": bounded,
        "untrained": fixed,
        "device": str(target.device),
        "compile": leapfrog.batch.mode,
        "compile_reason": leapfrog.batch.reason,
        "compile_seconds": {"learn": target.seconds, **leapfrog.batch.seconds},
        **({} if task.observations is None else {"missing_share": missing_share(task.model, task.args[0])}),
    }
    labels = xr.DataArray(0.0) if task.observations is None else task.observations
    return fit_result(task.model, whole, run.table(), attrs, labels, task.inputs)


def _observes(target: Density) -> bool:
    values = target.constrain(target.start(1, torch.Generator(target.device).manual_seed(0)))
    return observes(target.trace({name: value[0] for name, value in values.items()}).nodes)


def _bounded(task: Task, posterior: Draws) -> list[str]:
    """Sites whose log density the sampler took from below."""
    if task.observations is None:
        return []
    x = task.args[0]
    theta = {name: value[0].to(x.device) for name, value in posterior.draws(1).items()}
    return bounded_sites(task.model, theta, x, task.kwargs["u"])


def _check_options(
    counts: Mapping[str, int | None], sampler: str, target_accept: float | None, start: Fit | str, mode: str
) -> None:
    for name, value in counts.items():
        if value is not None:
            require_at_least(f"mcmc: {name}", value, 1)
    for name, given, known in (("sampler", sampler, SAMPLERS), ("compile", mode, MODES)):
        if given not in known:
            raise DataError(f"mcmc: {name} must be one of {known}, got {given!r}")
    if target_accept is not None:
        require_within("mcmc: target_accept", target_accept, 0, 1, "0.8 is usual")
    if not isinstance(start, Fit) and start not in STARTS:
        raise DataError(f"mcmc: start must be one of {STARTS} or an earlier fit, got {start!r}")


def _check_gibbs(args: tuple[Any, ...], **options: object) -> None:
    """Refuse what a Gibbs sampler has no use for."""
    if len(args) != 1:
        raise DataError(f'mcmc: sampler="gibbs" takes a model and its data x, got {len(args)} arguments')
    for name, value in options.items():
        if value not in (None, "auto"):
            raise DataError(f'mcmc: {name} does nothing for sampler="gibbs", got {value!r}; leave it out')


def _dense(asked: bool | str, size: int, draws: int) -> bool:
    if not isinstance(asked, bool) and asked != "auto":
        raise DataError(f'mcmc: dense_mass must be True, False or "auto", got {asked!r}')
    return bool(asked) if asked != "auto" else size <= DENSE_SIZE and draws >= DENSE_DRAWS * size


def _engine(sampler: str, leapfrog: Leapfrog, target: float | None, depth: int) -> Chees | Nuts:
    return Chees(leapfrog, target) if sampler == "chees" else Nuts(leapfrog, target, depth)


def _begin(
    leapfrog: Leapfrog,
    engine: Chees | Nuts,
    start: Fit | str,
    seed: int,
    lengths: tuple[int, int],
    arrays: Arrays,
    saved: Checkpoint | None,
    enough: Enough | None,
) -> Run:
    """A new run, or the one that was saved."""
    generator = torch.Generator(leapfrog.density.device).manual_seed(seed)
    before = None if saved is None else saved.load()
    if before is None:
        found = _start(start, leapfrog, generator)
        tuning = first_tuning(leapfrog, found, generator)
        run = Run(leapfrog, engine, leapfrog.at(found.v, tuning.factor), tuning, generator, *lengths, arrays, enough)
        if not bool(torch.isfinite(run.ensemble.value).any()):
            raise FitError(
                "mcmc: a starting point must have finite density and gradient, but no chain has such a one"
                f"{leapfrog.density.bad_site(found.v[0])}; choose another start"
            )
        return run
    v = leapfrog.density.start(leapfrog.chains, generator)
    run = Run(leapfrog, engine, leapfrog.at(v), first_tuning(leapfrog, Start(v)), generator, *lengths, arrays, enough)
    run.restore(before[1])
    return run


def _start(start: Fit | str, leapfrog: Leapfrog, generator: torch.Generator) -> Start:
    target, chains = leapfrog.density, leapfrog.chains
    if isinstance(start, Fit):
        return Start(target.unconstrain(start.posterior.draws(chains)))
    if start == "prior":
        return Start(target.unconstrain(target.prior(chains)))

    def gradient(v: Tensor) -> tuple[Tensor, Tensor]:
        ensemble = leapfrog.at(v)
        return ensemble.value, ensemble.gradient

    if start == "uniform":
        return Start(uniform(target, gradient, chains, generator))
    return pathfinder(target, gradient, chains, generator)


def _identity(leapfrog: Leapfrog, args: tuple[Any, ...], options: Mapping[str, object]) -> dict[str, bytes]:
    """Digest of all that a resumed run shares with the saved one: behaviour of the density, data, options, versions."""
    target = leapfrog.density
    there = leapfrog.at(target.start(leapfrog.chains, torch.Generator().manual_seed(1)))
    sites = [(site.name, tuple(site.shape), str(site.transform)) for site in target.sites.values()]
    data = [arg.numpy(force=True).tobytes() for arg in target.args if isinstance(arg, Tensor)]
    return {
        "sites": repr(sites).encode(),
        "density": repr((there.value.tolist(), there.gradient.tolist())).encode(),
        "data": b"".join([*data, repr([type(arg).__name__ for arg in args]).encode()]),
        "options": repr(dict(options)).encode(),
        "versions": repr((torch.__version__, version("ppgen"))).encode(),
    }


def _gather(run: Run, target: Density) -> Draws:
    """Draws of every site in its own units, and the records beside them."""
    records = run.records()
    if bool(records["diverging"].all()):
        raise FitError(
            "mcmc: some draws must be free of divergences, but all of them diverged; raise target_accept towards 1, "
            "write scales and hierarchies non-centred, tighten the priors, or tune for longer"
        )
    chains = run.v.shape[1]
    sites = {
        name: run.arrays.make(f"site-{number}", (chains, run.kept, *site.shape))
        for number, (name, site) in enumerate(target.sites.items())
    }
    rows = max(1, NUMBERS_AT_ONCE // (chains * target.size))
    for first in range(0, run.kept, rows):
        part = slice(first, min(first + rows, run.kept))
        for name, value in target.constrain(run.v[part].to(target.device)).items():
            sites[name][:, part] = value.movedim(0, 1)
    bad = sorted(site for site, value in sites.items() if not bool(torch.isfinite(value).all()))
    if bad:
        raise FitError(f"mcmc: draws must be finite, those of {bad} are not; scale the data, or tighten the priors")
    return Draws(sites, records)
