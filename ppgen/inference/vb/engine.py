r"""Natural-gradient variational Bayes, one function for every conjugate model.

With ``s_i = E_q[t(theta_i)]`` and the latents summed out exactly, the bound is
:math:`\mathcal L = \sum_n \log Z(x_n; s) - \sum_i \mathrm{KL}(q_i \| p_i)`, and the natural-gradient step

.. math:: \eta_i \leftarrow (1 - \rho)\, \eta_i
          + \rho \left( \eta_{0i} + \tfrac{N}{B} \, \partial_{s_i} \textstyle\sum_n \log Z(x_n; s) \right)

is coordinate ascent for :math:`\rho = 1, B = N`: the bound never goes down. Point-estimated hyperparameters are raised
in turn; the bound is then one of the log joint density of the data and these, on their unconstrained scale, which may
lie above the evidence (``fit.attrs["elbo"]`` says which it is).

References: Hoffman, Blei, Wang & Paisley (2013), eqs. 20-35; Johnson et al. (2016), §4 (the surrogate objective);
Beal (2003), ch. 3.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ppgen.arguments import as_folder, require_at_least, require_step_sizes
from ppgen.collapsed.base import Collapsed, Local
from ppgen.errors import DataError, FitError
from ppgen.expecting import first_factors, observed_given
from ppgen.inference.vb.batches import Batches
from ppgen.inference.vb.states import Saved, State
from ppgen.keywords import known_keywords
from ppgen.model import Conjugate, Factor, Model, tracked, updated
from ppgen.predictions.predictive import missing_share
from ppgen.programs.isolated import isolated
from ppgen.programs.naming import check_model
from ppgen.programs.task import read
from ppgen.results.digest import described
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Factors
from ppgen.rng import private_stream
from ppgen.storage.lock import held

__all__ = ["fit"]

SWEEPS = (2, 1)  # updates of held blocks a step: at first, and from where they were
SLACK = 1e-9  # relative rounding error of a sum over the data
IN_ALL = 1e5  # nats that may be left to gain at the end, for each nat of ``tol``
LAST = 6  # bounds that tell how gains shrink
FOLLOWED = 500  # steps that gains are followed into the future


@dataclass(frozen=True)
class Options:
    """Options of a run's steps."""

    max_steps: int
    tol: float
    batch_size: int | None
    delay: float
    forgetting: float
    checkpoint_every: int
    entries: int = 1


@known_keywords("vb")
def fit(
    model: Conjugate,
    x: object,
    *,
    u: object = None,
    max_steps: int = 1000,
    tol: float = 1e-5,
    batch_size: int | None = None,
    n_init: int = 1,
    start: Fit | str | None = None,
    delay: float = 1.0,
    forgetting: float = 0.7,
    random_seed: int | None = None,
    progressbar: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 25,
) -> Fit:
    """Fit a conjugate model.

    Parameters
    ----------
    model : a conjugate model. It is not changed; the fit holds a copy.
    x : observations, anything :func:`ppgen.data.as_observations` takes; NaN is not observed.
    u : inputs of the model, (N, U) or (N, T, U), or a dict of them by name; labelled ones follow the rows of ``x``.
        They may come sequence by sequence, each as long as its own, in a dict by the names of the sequences or a list.
    max_steps : largest number of steps of each start.
    tol : the run has converged when a step raises the bound by less than this many nats per observed entry (with
        minibatches: on average over a pass through the data). With all rows the gain still to come, estimated from
        how gains shrink, must also be below 100,000 times this number: one nat by default, whatever the data's size.
    batch_size : largest number of sequences of a step, in groups of about equal size; None uses all of them, and the
        bound then never goes down.
    n_init : number of starts, by the ways in ``model.starts`` in turn. The one with the highest bound is kept.
    start : way of the first start (``"kmeans"``, ``"random"``, ...), or an earlier fit of the same model to continue.
    delay, forgetting : stochastic step sizes ``(step + delay) ** -forgetting``.
    checkpoint : folder for checkpoints. Call `fit` again with the same arguments to resume, bit for bit.
    checkpoint_every : steps between saves.

    Raises
    ------
    DataError : for data or options that cannot be used.
    FitError : when the bound is not finite, or goes down in full-batch mode.
    """
    check_model("vb", model, (x,))
    if not isinstance(model, Conjugate):
        raise DataError(f"vb: model must be conjugate, got {type(model).__name__}; use svi.fit or mcmc.fit")
    options = Options(max_steps, tol, batch_size, delay, forgetting, checkpoint_every)
    _check(options, n_init)
    task = read("vb", model, (x,), u)
    model, data, inputs = cast(Conjugate, task.model), task.args[0], task.kwargs["u"]
    observations = cast(xr.DataArray, task.observations)
    if batch_size is not None and not 1 <= batch_size <= len(data):
        raise DataError(
            f"vb: batch_size must be between 1 and the {len(data)} {model.data_dims[0]}s of x, got {batch_size}"
        )
    options = replace(options, entries=max(1, int((~torch.isnan(data)).sum())))
    began = time.perf_counter()
    starts = [model.starts[i % len(model.starts)] for i in range(n_init)]
    methods = starts if start is None else [start, *starts[1:]]
    folder = as_folder("vb", checkpoint)
    settings = _settings(options, n_init=n_init, random_seed=random_seed, start=described(methods[0]))
    saved = None if folder is None else Saved(folder, model, data, inputs, settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(folder, "vb"))
        stack.enter_context(task.explained("vb"))
        known, known_seed = ([], None) if saved is None else saved.load()
        seed = stack.enter_context(private_stream(random_seed if known_seed is None else known_seed))
        batches = Batches(data, inputs, batch_size, ragged=model.ragged)
        stack.enter_context(_each_warning_once())
        states, interrupted = _restarts(model, batches, options, methods, known, seed, saved, progressbar)
    best = max(states, key=lambda state: state.bound)
    _restore(model, best.hyper)
    attrs = {
        "engine": "vb",
        "random_seed": seed,
        "converged": best.converged,
        "interrupted": interrupted,
        "elbo": _meaning(best.hyper),
        "restart_elbos": [state.bound for state in states],
        "seconds": time.perf_counter() - began,
        "batch_size": batch_size or len(data),
        "missing_share": missing_share(model, data),
    }
    history = pd.concat([pd.DataFrame(state.rows).assign(init=i) for i, state in enumerate(states)], ignore_index=True)
    history["kept"] = history["init"] == states.index(best)
    points = {site: value.detach() for site, value in model.points.items()}
    return fit_result(model, Factors(best.q, points), history, attrs, observations, task.inputs)


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """Let what every start says of the data be said by the first alone."""
    said: set[str] = set()

    def fresh(record: logging.LogRecord) -> bool:
        words = record.getMessage()
        return words not in said and not said.add(words)  # type: ignore[func-returns-value]

    log = logging.getLogger("ppgen.emissions.units")
    log.addFilter(fresh)
    try:
        yield
    finally:
        log.removeFilter(fresh)


def _check(options: Options, n_init: int) -> None:
    counts = {"max_steps": options.max_steps, "n_init": n_init, "checkpoint_every": options.checkpoint_every}
    for name, value in counts.items():
        require_at_least(f"vb: {name}", value, 1)
    if not 0 <= options.tol < float("inf"):
        raise DataError(f"vb: tol must be zero or more, got {options.tol}")
    require_step_sizes("vb", options.delay, options.forgetting)


def _meaning(hyper: Mapping[str, Tensor]) -> str:
    """Say what the bound bounds: with point estimates a joint density of them and the data, not the evidence."""
    if not hyper:
        return "a lower bound of log p(x)"
    return f"a lower bound of log p(x, {', '.join(hyper)}) at their point estimates; it may lie above log p(x)"


def _settings(options: Options, **others: int | str | None) -> dict[str, object]:
    """Options that must agree before a run goes on from a checkpoint; ``max_steps`` may differ."""
    shared = {k: v for k, v in asdict(options).items() if k not in ("max_steps", "checkpoint_every")}
    return {**shared, **others}


def _restarts(
    model: Conjugate, batches: Batches, options: Options, methods: Sequence[Fit | str], known: Sequence[State],
    seed: int, saved: Saved | None, progressbar: bool,
) -> tuple[list[State], bool]:  # fmt: skip
    """Run every start from where it is ``known`` to be; also whether they were interrupted.

    Each start has its own random stream, so that a resumed run meets the same.
    """
    done: list[State] = []
    hyper = _hyper(model)
    for number, method in enumerate(methods):
        _restore(model, hyper)
        title = f"vb {number + 1}/{len(methods)}" if len(methods) > 1 else "vb"
        state: State | None = None
        later = known[number + 1 :]
        try:
            with private_stream(seed + number):
                begun = known[number] if number < len(known) else _start(model, batches, method)
            _restore(model, begun.hyper)
            for state in _run(model, batches, begun, options, title, progressbar):
                if saved is not None and len(state.rows) % options.checkpoint_every == 0:
                    saved.save([*done, state, *later], seed)
        except KeyboardInterrupt:
            reached = done if state is None else [*done, state]
            if not reached:
                raise  # nothing to give back yet
            if saved is not None:
                saved.save([*reached, *later], seed)
            return reached, True
        done.append(state or begun)  # a start that had ended before takes no step
        if saved is not None:
            saved.save([*done, *later], seed)
    return done, False


def _start(model: Conjugate, batches: Batches, start: Fit | str) -> State:
    if isinstance(start, Fit):
        if not isinstance(start.posterior, Factors):
            raise DataError(
                "vb: start must be a fit with factors, got draws; leave start out, or pass a fit by vb.fit, or by "
                "svi.fit with its default guide"
            )
        q = dict(start.posterior.factors)
        _check_same(q, model.natural_prior())
        _restore(model, _hyper(start.model))
    else:
        with isolated():
            q = first_factors(model, [x for x, _ in batches], [u for _, u in batches], start)
    return State(q, _hyper(model), ({},) * len(batches))


def _check_same(start: Mapping[str, Factor], own: Mapping[str, Factor]) -> None:
    """Refuse to start from the factors of another model."""

    def shapes(factors: Mapping[str, Factor]) -> dict[str, object]:
        return {name: {k: tuple(v.shape) for k, v in factor.eta.items()} for name, factor in factors.items()}

    if shapes(start) != shapes(own):
        raise DataError(f"vb: start must be a fit of this model, with factors {shapes(own)}, got {shapes(start)}")


def _run(
    model: Conjugate, batches: Batches, state: State, options: Options, title: str, progressbar: bool
) -> Iterator[State]:
    """Step until converged or out of steps, yielding every state; none where it has ended before."""
    step = _full_step if options.batch_size is None else _stochastic_step
    state = replace(state, rows=tuple(row for row in state.rows if row["step_size"] > 0))  # less an earlier end
    with tqdm(total=options.max_steps, initial=len(state.rows), desc=title, disable=not progressbar, delay=1) as bar:
        while len(state.rows) < options.max_steps and not state.converged:
            state = step(model, batches, state, options)
            bar.update()
            bar.set_postfix_str(f"ELBO {state.bound:,.1f}", refresh=False)
            yield state
    if options.batch_size is not None:
        yield _final_bound(model, batches, state)


def _full_step(model: Conjugate, batches: Batches, state: State, options: Options) -> State:
    """Latents, then factors, then hyperparameters: each raises the bound."""
    prior = model.natural_prior()
    s, total, local = _gather(model, batches, range(len(batches)), state)
    bound = total - _divergence(model, state.q, prior)
    number = len(state.rows) + 1
    _refuse_bad_bound(bound, state, options, number)
    q = {name: updated(factor, s[name]) for name, factor in prior.items()}
    _refine(model, q)
    gain = (bound - state.bound) / options.entries
    row = {"step": number, "elbo": bound, "step_size": 1.0}
    rows = (*state.rows, row)
    converged = number > 1 and gain < options.tol and left_to_gain(rows) < options.tol * IN_ALL
    return State(q, _hyper(model), local, rows, converged)


def left_to_gain(rows: Sequence[Mapping[str, float]]) -> float:
    """Nats that a run of full steps has before it: its last gains go on as a geometric series."""
    bounds = [row["elbo"] for row in rows[-LAST:]]
    gains = [after - before for before, after in itertools.pairwise(bounds)]
    if not gains:
        return float("inf")
    if gains[-1] <= 0:
        return 0.0
    slowest = 1 - 1 / FOLLOWED
    first, steps = gains[0], len(gains) - 1
    ratio = min((gains[-1] / first) ** (1 / steps), slowest) if first > 0 and steps else slowest
    return gains[-1] * ratio / (1 - ratio)


def _stochastic_step(model: Conjugate, batches: Batches, state: State, options: Options) -> State:
    """A noisy natural gradient from one batch of sequences."""
    number = len(state.rows) + 1
    rate = (number + options.delay) ** -options.forgetting
    index = batches.turn(number - 1)
    share = batches.weight
    prior = model.natural_prior()
    fresh = replace(state, local=({},) * len(batches))
    s, total, _ = _gather(model, batches, [index], fresh)
    bound = total * share - _divergence(model, state.q, prior)
    if not torch.isfinite(torch.tensor(bound)):
        raise FitError(f"vb: the bound is {bound} at step {number}; scale the features to about unit variance")
    target = {name: updated(factor, s[name], share) for name, factor in prior.items()}
    q = {name: _mix(state.q[name], target[name], rate) for name in target}
    _refine(model, q)
    rows = (*state.rows, {"step": number, "elbo": bound, "step_size": rate})
    return State(q, _hyper(model), state.local, rows, _settled(rows, len(batches), options))


def _final_bound(model: Conjugate, batches: Batches, state: State) -> State:
    """The bound of the whole data behind a stochastic run."""
    with torch.no_grad():
        _, total, _ = _gather(model, batches, range(len(batches)), replace(state, local=({},) * len(batches)))
    bound = total - _divergence(model, state.q, model.natural_prior())
    return replace(state, rows=(*state.rows, {"step": len(state.rows) + 1, "elbo": bound, "step_size": 0.0}))


def _settled(rows: Sequence[Mapping[str, float]], passes: int, options: Options) -> bool:
    """Tell whether the bound averaged over a pass has stopped rising (at least ten steps a window, in whole passes)."""
    window = -(-10 // passes) * passes  # whole passes: what one group lacks another has
    if len(rows) < 2 * window:
        return False
    recent = sum(row["elbo"] for row in rows[-window:]) / window
    before = sum(row["elbo"] for row in rows[-2 * window : -window]) / window
    return (recent - before) / options.entries / window < options.tol


def _gather(
    model: Conjugate, batches: Batches, chosen: Sequence[int] | range, state: State
) -> tuple[dict[str, dict[str, Tensor]], float, tuple[dict[str, Local], ...]]:
    """Evidence and its gradient with respect to the expected statistics, summed over batches."""
    s = {name: tracked(factor.expected()) for name, factor in state.q.items()}
    local, total = list(state.local), 0.0
    for index in chosen:
        x, u = batches[index]
        with isolated():
            found = observed_given(model, s, x, u)
        scores = []
        for name, (fn, value) in found.items():
            if isinstance(fn, Collapsed):
                before = local[index].get(name)
                local[index] = {**local[index], name: fn.settle(value, before, SWEEPS[before is not None])}
                scores.append(fn.evidence(value, local[index][name]).sum())
            else:
                scores.append(fn.log_prob(value).sum())
        evidence = torch.stack(scores).sum()
        if torch.is_grad_enabled():
            evidence.backward()
        total += float(evidence.detach())
    return s, total, tuple(local)


def _refine(model: Conjugate, q: Mapping[str, Factor]) -> None:
    """Raise the bound over the point-estimated hyperparameters of the prior, the factors held fixed."""
    learned = list(model.parameters())
    if not learned:
        return
    optimizer = torch.optim.LBFGS(learned, max_iter=20, line_search_fn="strong_wolfe")
    expected = {
        name: {k: v.detach() for k, v in q[name].expected().items()}
        for name, factor in model.natural_prior().items()
        if any(value.requires_grad for value in factor.eta.values())
    }

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = model.natural_prior()
        value = -model.log_hyperprior()
        for name, s in expected.items():
            family, eta = prior[name]
            value = value - family.inner(eta, s).sum() + family.log_normalizer(eta).sum()
        value.backward()
        return value

    before = [p.detach().clone() for p in learned]
    start = float(loss().detach())
    optimizer.step(loss)
    if not float(loss().detach()) <= start:
        for p, value in zip(learned, before, strict=True):
            p.data.copy_(value)
    optimizer.zero_grad()


def _divergence(model: Conjugate, q: Mapping[str, Factor], prior: Mapping[str, Factor]) -> float:
    """KL of the factors, less the log prior of the hyperparameters."""
    with torch.no_grad():
        kl = sum(float(prior[name].family.kl(q[name].eta, prior[name].eta).sum()) for name in prior)
        return kl - float(model.log_hyperprior())


def _refuse_bad_bound(bound: float, state: State, options: Options, number: int) -> None:
    if not torch.isfinite(torch.tensor(bound)):
        raise FitError(
            f"vb: the bound is {bound} at step {number}; scale the features to about unit variance, or use a stronger "
            "prior"
        )
    if bound < state.bound - SLACK * max(abs(bound), options.entries):
        raise FitError(
            f"vb: the bound went down from {state.bound:.6f} to {bound:.6f} at step {number}, which must not happen in "
            "full-batch mode; please report it with the model and data"
        )


def _mix(old: Factor, new: Factor, rate: float) -> Factor:
    return Factor(old.family, {k: torch.lerp(v, new.eta[k], rate) for k, v in old.eta.items()})


def _hyper(model: Model) -> dict[str, Tensor]:
    """Point-estimated hyperparameters of the model itself (those of a guide live in ``q``)."""
    return {k: v.detach().clone() for k, v in model.named_parameters()}


def _restore(model: Conjugate, hyper: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, value in hyper.items():
        own[name].data.copy_(value)
