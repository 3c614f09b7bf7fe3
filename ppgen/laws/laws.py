"""The laws that every model keeps, tried on a user's own: `ppgen.check(model, x)`.

A law compares what a program says of the data with what it says of the same data hidden in part, in another order, or
in batches, at one point of its parameters. It is an identity, so it holds there or it is broken.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.data.parts import each, parts
from ppgen.diagnostics.verdict import Check, Report, report
from ppgen.errors import DataError, PpgenError
from ppgen.laws.subject import Subject, subject
from ppgen.model import Model
from ppgen.predictions import predictive
from ppgen.predictions.conditioned import name_of, run
from ppgen.predictions.outcomes import outcomes
from ppgen.programs.density import density, private_pyro
from ppgen.programs.minibatch import check_minibatch
from ppgen.programs.naming import check_keywords, wrong_dims
from ppgen.programs.program import Function, copy_model
from ppgen.programs.task import read
from ppgen.results.rebuild import describe, rebuild
from ppgen.rng import private_stream

__all__ = ["check"]

TOLERANCE = 1e-8  # relative, of two ways to the same density
OWN_ATTRIBUTES = ("_memory", "_mean_field")  # attributes that ppgen itself adds to a model

Law = Callable[[Subject], Check]


def check(
    model: Model | Callable[..., Any],
    *args: Any,  # noqa: ANN401 (the program's own)
    u: object = None,
    random_seed: int | None = None,
) -> Report:
    """Try the laws of a model on your own model and data, before it is fitted.

    Parameters
    ----------
    model : a `Model`, or a function with ``pyro.sample`` sites; it is not changed.
    args : for a `Model` the observations ``x`` (the first 64 rows are used); for a function its arguments.
    u : inputs of a `Model`, a row per row of ``x``.
    random_seed : seed of the parameters at which the laws are tried.

    Returns
    -------
    Report : a line for each law; one that is broken says what to write. An error inside the program is a broken law
        too.

    Raises
    ------
    DataError : data or inputs that no model can be asked about, or a model without a density.
    """
    if isinstance(model, Model) and model.only_gibbs:
        raise DataError(
            f"check: the laws are about densities, and {name_of(model)} has none in closed form; check the model "
            "inside it"
        )
    try:
        if isinstance(model, Model):
            check_keywords("check", model.model, f"{name_of(model)}.model", ("u", "total"))
    except DataError as error:
        return report([_broken("keywords", error)])
    task = read("check", model, args, u)
    with private_stream(random_seed) as seed:
        try:
            with task.explained("check"):
                one = subject(task, seed)
        except Exception as error:  # noqa: BLE001 (whatever a program of the user's does)
            return report([_broken("each value is scored once", error)])
        checks = [Check("each value is scored once", 0, f"none of {len(one.theta)} sites", True, "")]
        checks += [_tried(name, law, one) for name, law in _laws(one)]
    return report(checks, _notes(one.model))


def _laws(one: Subject) -> Iterator[tuple[str, Law]]:
    """The laws that make sense for what was given."""
    if isinstance(one.model, Function):
        if not one.has_rows:
            return
        yield "the data come first", _data_first
    if not one.is_function or one.had_gaps:
        yield "NaN is not observed", _nan_hides
        yield "an empty row adds nothing", _empty_row
    yield "rows in another order", _order
    if not one.is_function:
        yield "another number of rows", _number
        yield "batches with total", _batches
        yield "dims", _dims
        yield "config", _config
        if "time" in one.model.data_dims:
            yield "trailing NaN is a shorter sequence", _shorter
    yield "keeps and changes no data", _keeps_nothing
    yield "same seed, same draws", _seed


def _tried(name: str, law: Law, one: Subject) -> Check:
    try:
        return law(one)._replace(check=name)
    except Exception as error:  # noqa: BLE001 (whatever a program of the user's does)
        return _broken(name, error)


def _broken(name: str, error: Exception) -> Check:
    """A law during which something was raised: ppgen's own words, or the error in a line."""
    words = str(error).strip()
    if isinstance(error, PpgenError):
        return Check(name, math.nan, "no error", False, words.split(": ", 1)[-1])
    first = words.splitlines()[0] if words else "no message"
    return Check(name, math.nan, "no error", False, f"the program raised {type(error).__name__}: {first}; mend it")


def _notes(model: Model) -> list[str]:
    if not isinstance(model, Function) and type(model).config is Model.config:
        return [f"{name_of(model)} has no config: a saved fit is loaded with `ppgen.load(folder, model=an instance)`."]
    return []


def _equal(one: Tensor, two: Tensor, advice: str) -> Check:
    """Tell whether two ways give the same densities; the value is the largest difference, in nats."""
    wide = float((one - two).abs().max()) if len(one) else 0.0
    size = float(torch.cat([one, two]).abs().max()) if len(one) else 0.0
    return Check("", wide, f"the same density, to {TOLERANCE:.0e} of it", wide <= TOLERANCE * (1 + size), advice)


def _counted(wrong: list[str], total: int, what: str) -> Check:
    return Check("", len(wrong), f"none of {total} {what}", not wrong, "; ".join(wrong))


def _data_first(one: Subject) -> Check:
    trace = run(one.model, one.theta, one.x, one.u)
    outcomes(one.model, trace, one.theta, one.x, one.u)
    return _counted([], 1, "data sites")


def _nan_hides(one: Subject) -> Check:
    """Density and gradient are finite with gaps, and what bits a NaN is made of is all the same."""
    hidden = one.with_gaps()
    target = density(hidden.program, *hidden.args, **hidden.kwargs)
    found = [part.flatten() for part in target.value_and_grad(one.v[None])]
    bad = sum(int((~part.isfinite()).sum()) for part in found)
    payload = torch.tensor(0x7FF8DEADBEEF0001, dtype=torch.int64).view(torch.float64).to(hidden.x.dtype)
    other = hidden.of(torch.where(torch.isnan(hidden.x), -payload, hidden.x))
    moved = int((other.likelihood() != hidden.likelihood()).sum())
    wrong = bad + moved
    advice = (
        "density or gradient are not finite where entries are hidden; fill them with a legal value first, then mask: "
        "`seen = ~torch.isnan(x)`, `dist.Normal(...).mask(seen)`, `obs=torch.where(seen, x, 0.0)`"
    )
    return Check("", wrong, f"none of {sum(map(len, found)) + len(hidden.x)} numbers", wrong == 0, advice)


def _empty_row(one: Subject) -> Check:
    """A row without observations has the density one, and the others keep theirs."""
    x = one.x.clone()
    x[-1] = torch.nan
    before, after = one.likelihood().clone(), one.of(x).likelihood()
    before[-1] = 0.0
    advice = (
        "a hidden entry must not be scored, it counts as if its filling had been seen; write "
        "`.mask(~torch.isnan(x))` behind the distribution of the data"
    )
    return _equal(after, before, advice)


def _order(one: Subject) -> Check:
    """Rows that come in another order have the same densities."""
    order = torch.arange(len(one.x)).flip(0)
    return _equal(
        one.at(order).likelihood(),
        one.likelihood()[order],
        "the density of a row must not depend on the order of the rows; let it use its own entries and inputs only, "
        "and no statistic of all of x",
    )


def _number(one: Subject) -> Check:
    """A few rows alone, and all rows twice, have the densities that they had among the others."""
    rows = torch.arange(len(one.x))
    twice = torch.cat([rows, rows])
    few = next(count for count in range(1, len(one.x) + 5) if count not in one.x.shape[1:])  # no square
    found = torch.cat([one.at(rows[:few]).likelihood(), one.at(twice).likelihood()])
    whole = one.likelihood()
    return _equal(
        found,
        torch.cat([whole[:few], whole[twice]]),
        "the density of a row must not depend on how many others there are; take sizes from len(x), and keep no "
        "statistic of all of x",
    )


def _batches(one: Subject) -> Check:
    """The mean over batches of the density with ``total`` rows behind each is that of the whole."""
    rows = torch.arange(len(one.x) // 2 * 2) if len(one.x) > 3 else torch.arange(4) % len(one.x)
    whole, half = one.at(rows), len(rows) // 2
    with private_pyro(one.x.dtype):
        check_minibatch(whole.model.model, whole.x, whole.u, half)
    if whole.leaves_out_sites():
        return _counted([], 1, "plates")  # their sums over values are not linear in the rows
    parts = torch.stack([_joint(whole.at(torch.arange(k, k + half)), len(rows)) for k in (0, half)])
    advice = (
        "a batch must weigh as all the rows behind it; write the plate as "
        '`with pyro.plate("row", total or len(x), subsample_size=len(x)):` and put all that scores a row inside it'
    )
    return _equal(parts.mean()[None], _joint(whole, len(rows))[None], advice)


def _joint(one: Subject, total: int) -> Tensor:
    with torch.no_grad(), private_pyro(one.x.dtype):
        program = poutine.trace(poutine.condition(one.model.model, data=dict(one.theta)))
        return torch.as_tensor(program.get_trace(one.x, u=one.u, total=total).log_prob_sum())


def _shorter(one: Subject) -> Check:
    """A sequence whose last frames are hidden is the sequence without them."""
    cut = max(1, one.x.shape[1] // 4)
    if one.x.shape[1] < 2:
        return _counted([], 0, "frames")
    hidden = one.x.clone()
    hidden[:, -cut:] = torch.nan
    return _equal(
        one.of(hidden).likelihood(),
        one.of(one.x[:, :-cut], shorter=one.x.shape[1] - cut).likelihood(),
        "trailing NaN is the end of a sequence; let hidden steps score nothing, and take the number of steps from x",
    )


def _dims(one: Subject) -> Check:
    shapes = {name: value.shape for name, value in one.theta.items()}
    wrong = wrong_dims(one.model, shapes)
    unnamed = {name: ("axis",) * len(shape) for name, shape in shapes.items() if name not in one.model.dims}
    wrong += [
        f"dims must name every site, {name!r} is not there; write {name!r}: {axes}" for name, axes in unnamed.items()
    ]
    odd = sorted(set(one.model.dims) - set(shapes) - set(one.left_out))
    wrong += [
        f"dims must name sites of the model, {name!r} is not one; take it out"
        for name in odd
        if not hasattr(one.model, name)
    ]
    return _counted(wrong, len(shapes), "sites")


def _config(one: Subject) -> Check:
    """The model that ``config`` builds says the same of the data."""
    description, tensors = describe(one.model)
    if description["arguments"] is None:
        return _counted([], 0, "arguments")
    again = rebuild(description, {f"config/{key}": value for key, value in tensors.items()}, type(one.model))
    again.load_state_dict(one.model.state_dict())
    advice = "config must hold every argument of __init__ as it was; write `return {name: self.name, ...}` with all"
    if describe(again)[0] != description or dict(again.dims) != dict(one.model.dims):
        return _counted([advice], len(description["arguments"]), "arguments")
    return _equal(one.with_model(again.to(one.x.dtype)).likelihood(), one.likelihood(), advice)


def _keeps_nothing(one: Subject) -> Check:
    """A run leaves the data and the model as they were."""
    model = one.model if isinstance(one.model, Function) else copy_model(one.model)
    x, u = one.x.clone(), each(one.u, torch.Tensor.clone)
    before, state = dict(vars(model)), {name: value.clone() for name, value in model.state_dict().items()}
    run(model, one.theta, x, u)
    wrong = []
    if not all(_same(*pair) for pair in zip([x, *parts(u)], [one.x, *parts(one.u)], strict=True)):
        wrong.append("the program must not write into x or u; work on `x.clone()`")
    grown = [
        name
        for name, value in vars(model).items()
        if name not in OWN_ATTRIBUTES and isinstance(value, Tensor) and value is not before.get(name)
    ]
    changed = [name for name, value in model.state_dict().items() if not _same(value, state.get(name))]
    wrong += [f"a model must hold no data, it kept {name!r} in a run; use a local variable" for name in grown]
    wrong += [f"a model must not change in a run, {name!r} did; use a local variable" for name in changed]
    return _counted(wrong, 1 + len(state), "tensors")


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.shape == two.shape and bool(torch.equal(one.nan_to_num(0.5), two.nan_to_num(0.5)))


def _seed(one: Subject) -> Check:
    """Replicated data are data that the model takes, and the same for the same seed."""

    def draw() -> Tensor:
        with private_stream(one.seed):
            return predictive.replicate(one.model, one.theta, one.x, u=one.u)

    first, second = draw(), draw()
    one.model.check(first)
    wrong = [] if _same(first, second) else ["random numbers must come from pyro.sample or torch's global generator"]
    return _counted(wrong, 1, "pairs of replicates")
