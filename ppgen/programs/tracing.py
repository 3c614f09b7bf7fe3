"""Trace a function of tensors into a graph of operators, simplify it, and compile it where that pays.

Nothing of Pyro is left in the graph, nor anything that depends on no input, or that nothing depends on.
"""

import math
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, final, get_args

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ppgen.errors import FitError
from ppgen.programs.threads import limited, threads_for
from ppgen.programs.work import Work, work_of

__all__ = ["MODES", "Batch", "Mode", "blame", "build", "compiled"]

Mode = Literal["auto", "compiled", "traced", "eager"]
MODES: tuple[str, ...] = get_args(Mode)

Outputs = Sequence[Tensor]

TIMED_CALLS = 5
FACTORISATIONS = tuple(
    getattr(torch.ops.aten, name).default
    for name in ("linalg_cholesky_ex", "linalg_inv_ex", "linalg_lu_factor_ex", "_linalg_solve_ex")
)  # their last output says in which row of the batch they failed
FRESH = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
)  # memory that random numbers may be written into
EXITS = (Tensor.numpy, Tensor.__array__, Tensor.tolist)
TOLERANCE = {torch.float32: 1e-3}  # relative difference of compiled and traced graph that is still rounding; else 1e-6


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """A function of tensors of fixed shapes: how it is run, why, the seconds each stage took, and its operators.

    ``work`` is what those do; ``threads`` is how many are worth it (see :mod:`ppgen.programs.threads`).
    """

    run: Callable[..., Outputs]
    mode: Mode
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)
    nodes: int = 0
    work: Work | None = None
    threads: int | None = None

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Outputs for ``inputs`` of the shapes it was built for."""
        return self.run(*inputs)


def build(function: Callable[..., Outputs], examples: Sequence[Tensor], mode: Mode, calls: float) -> Batch:
    """Trace ``function`` at ``examples``; compile it too if asked, or if ``calls`` calls would pay for it."""
    began = time.perf_counter()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own machinery, about what a user cannot change
        graph = _trace(function, examples)
    work = work_of(graph)
    threads = threads_for(work.width) if all(example.device.type == "cpu" for example in examples) else None
    seconds = {"trace": time.perf_counter() - began}
    with limited(threads):
        seconds["call"] = _time(graph, examples)
    reason = "asked for" if mode == "traced" else work.words(calls)
    traced = Batch(graph, "traced", reason, seconds, len(graph.graph.nodes), work, threads)
    if mode == "traced" or (mode == "auto" and not work.pays(calls)):
        return traced
    return compiled(traced, examples, "asked for" if mode == "compiled" else reason)


def compiled(traced: Batch, examples: Sequence[Tensor], reason: str) -> Batch:
    """Compile the function, for this ``reason``; if torch cannot, it stays traced, and the reason says why."""
    began = time.perf_counter()
    with limited(traced.threads):
        run, fault = _compile(cast(fx.GraphModule, traced.run), examples)
        seconds = traced.seconds | {"compile": time.perf_counter() - began}
        if run is None:
            return replace(traced, reason=fault, seconds=seconds)
        seconds["call"] = _time(run, examples)
    return replace(traced, run=run, mode="compiled", reason=reason, seconds=seconds)


@final
class _Watch(TorchDispatchMode):
    """While a function is traced: what depends on none of its inputs is computed, not recorded (if ``fold``).

    So a program may look at its data, and pays once for what depends on nothing else; random numbers are drawn anew at
    every call. And a factorisation that fails in one row of a batch is NaN in that row, instead of an error for all.
    """

    def __init__(self, inputs: Sequence[Tensor], *, fold: bool) -> None:
        super().__init__()
        self.dependent = WeakTensorKeyDictionary(dict.fromkeys(inputs, True))
        self.fold, self.overwritten = fold, False

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (an operator)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operator returns)
        """Run an operator: folded if it depends on no input, else noted, with failed factorisations as NaN."""
        kwargs = kwargs or {}
        fresh = torch.Tag.nondeterministic_seeded in func.tags or func in FRESH
        if self.fold and not fresh and not any(value in self.dependent for value in _tensors((args, kwargs))):
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if func is torch.ops.aten._linalg_check_errors.default:
            return None
        if func._schema.is_mutable and isinstance(args[0], Tensor) and args[0] not in self.dependent:
            self.overwritten = True
        result = func(*args, **kwargs)
        if func in FACTORISATIONS:
            result = (_without_failures(result[0], result[-1]), *result[1:])
        for value in _tensors(result):
            self.dependent[value] = True
        return result


@final
class _Sealed(TorchFunctionMode):
    """While a function is traced: what depends on its inputs cannot leave for numpy, where no graph sees it."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 (a function of torch)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function returns)
        if func in EXITS and args[0] in self.watch.dependent:
            raise RuntimeError(f"a value left for {func.__name__}")
        return func(*args, **(kwargs or {}))


def _without_failures(result: Tensor, info: Tensor) -> Tensor:
    failed = (info != 0).reshape(info.shape + (1,) * (result.ndim - info.ndim))
    return result.masked_fill(failed, math.nan)


def _trace(function: Callable[..., Outputs], examples: Sequence[Tensor]) -> fx.GraphModule:
    """A graph of operators. A function that writes into a constant is traced whole: its constants are none."""
    for fold in (True, False):
        overwritten = False

        def watched(*inputs: Tensor, fold: bool = fold) -> Outputs:
            nonlocal overwritten
            with _Watch(inputs, fold=fold) as watch, _Sealed(watch):
                outputs = function(*inputs)
            overwritten = watch.overwritten
            return outputs

        graph = make_fx(watched)(*examples)
        if not overwritten:
            break
    graph.graph.eliminate_dead_code(_has_effect)
    graph.recompile()
    return graph


def _has_effect(node: fx.Node) -> bool:
    """Tell whether a node must stay although nobody uses its result; random numbers need not (plates draw some)."""
    tags = getattr(node.target, "tags", ())
    schema = getattr(node.target, "_schema", None)
    if torch.Tag.nondeterministic_seeded in tags and schema is not None and not schema.is_mutable:
        return False
    return node.op in ("placeholder", "output") or node.is_impure()


def blame(error: Exception) -> Exception:
    """Words for a program that cannot be traced, with the line of it that looked at a value."""
    place = _own_line(error)
    if place is None:
        return error
    if "requires_grad_()" in str(error):
        return FitError(
            f"density: the program must have no pyro.param, got one at {place}; a sampler cannot learn it: sample it "
            "from a prior, or use svi.fit"
        )
    cause = str(error).strip().split("\n")[0].split(". ")[0]
    return FitError(
        "density: the program must do the same whatever the values of its sites (no `if`, `.item()`, numpy or loop "
        f"that depends on one), got {type(error).__name__} at {place}: {cause}; write it with torch.where, or pass "
        'for the slow way, "eager"'
    )


def _compile(graph: fx.GraphModule, examples: Sequence[Tensor]) -> tuple[Callable[..., Outputs] | None, str]:
    """The compiled graph; or None, and the reason. Its loops have the threads that torch has now."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch._inductor as inductor  # slow to import
            from torch._inductor import config

            here: dict[str, Any] = {"cpp.threads": torch.get_num_threads()}  # part of what its cache goes by
            with config.patch(fallback_random=True, **here):  # the same random numbers as the graph's
                compiled = inductor.compile(graph, list(examples))
            actual, expected = _seeded(compiled, examples), _seeded(graph, examples)
    except Exception as error:  # noqa: BLE001 (a missing compiler, header or operator: whatever it is, the graph works)
        return None, f"torch cannot compile it here ({type(error).__name__})"
    if not all(_alike(one, two) for one, two in zip(actual, expected, strict=True)):
        return None, "the compiled graph gave other values than the traced one"
    return compiled, ""


def _seeded(function: Callable[..., Outputs], examples: Sequence[Tensor]) -> Outputs:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return function(*examples)


def _alike(one: Tensor, two: Tensor) -> bool:
    """Equal but for rounding, which is judged by the largest entry: sums cancel."""
    tolerance = TOLERANCE.get(two.dtype, 1e-6)
    largest = float(two.nan_to_num(posinf=0.0, neginf=0.0).abs().amax()) if two.numel() else 0.0
    return torch.allclose(one, two, rtol=tolerance, atol=tolerance * max(1.0, largest), equal_nan=True)


def _time(function: Callable[..., Outputs], examples: Sequence[Tensor]) -> float:
    """Seconds of one call, the best of some."""
    best = math.inf
    with torch.no_grad():
        for _ in range(TIMED_CALLS):
            began = time.perf_counter()
            function(*examples)
            best = min(best, time.perf_counter() - began)
    return best


def _tensors(values: Any) -> list[Tensor]:  # noqa: ANN401 (nested arguments)
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _own_line(error: BaseException) -> str | None:
    """The innermost line that belongs neither to a library nor to this package's machinery."""
    frames: list[traceback.FrameSummary] = []
    seen: BaseException | None = error
    while seen is not None:
        frames = [frame for frame in traceback.extract_tb(seen.__traceback__) if _is_own(frame.filename)] or frames
        seen = seen.__cause__ or seen.__context__
    if not frames:
        return None
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} (`{frame.line}`)"


def _is_own(filename: str) -> bool:
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(Path(__file__).parent), sys.prefix}
    return Path(filename).exists() and not any(filename.startswith(folder) for folder in libraries if folder)
