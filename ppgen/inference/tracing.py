"""From a function of tensors to a graph of tensor operators, simplified, and compiled where that pays.

Nothing of Pyro is left in the graph. What depends on no input is computed once; what nothing depends on is dropped.
"""

import math
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.errors import FitError

__all__ = ["Batch", "Mode", "blame", "build"]

Mode = Literal["auto", "compiled", "traced", "eager"]

Outputs = tuple[Tensor, ...]

COMPILE_SECONDS, COMPILE_SECONDS_PER_NODE = 3.0, 0.03  # what a compilation is expected to take
SAVED = 0.6  # share of the traced graph's time that compilation is expected to save
TIMED_CALLS = 5
TOLERANCE = 1e-6  # relative difference between the compiled and the traced graph that is still rounding


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """A function of tensors of fixed shapes: how it is run, why, the seconds each stage took, and its operators."""

    run: Callable[..., Outputs]
    mode: Mode
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)
    nodes: int = 0

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Outputs for ``inputs`` of the shapes it was built for."""
        return self.run(*inputs)


def build(function: Callable[..., Outputs], examples: Sequence[Tensor], mode: Mode, calls: int) -> Batch:
    """Trace ``function`` at ``examples``; compile it too if asked, or if ``calls`` calls would pay for it."""
    began = time.perf_counter()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own machinery, about what a user cannot change
        graph = simplify(make_fx(lambda *inputs: function(*inputs))(*examples))
    seconds = {"trace": time.perf_counter() - began, "call": _time(graph, examples)}
    nodes = len(graph.graph.nodes)
    saved, cost = SAVED * calls * seconds["call"], COMPILE_SECONDS + COMPILE_SECONDS_PER_NODE * nodes
    if mode == "traced" or (mode == "auto" and saved < cost):
        reason = "asked for" if mode == "traced" else f"compiling takes about {cost:.1f} s and would save {saved:.1f} s"
        return Batch(graph, "traced", reason, seconds, nodes)
    began = time.perf_counter()
    compiled, reason = _compile(graph, examples)
    seconds["compile"] = time.perf_counter() - began
    if compiled is None:
        return Batch(graph, "traced", reason, seconds, nodes)
    seconds["call"] = _time(compiled, examples)
    return Batch(compiled, "compiled", "asked for" if mode == "compiled" else reason, seconds, nodes)


def simplify(graph: fx.GraphModule) -> fx.GraphModule:
    """Compute constants, drop dead code; the values of the graph do not change."""
    constants: dict[fx.Node, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if isinstance(value, Tensor):
                constants[node] = value.detach()
        elif _foldable(node, constants):
            result = node.target(*_at(node.args, constants), **_at(node.kwargs, constants))
            if isinstance(result, Tensor):
                constants[node] = result
    if any(_mutates(node) and node.args[0] in constants for node in graph.graph.nodes if node.args):
        return graph  # a constant that is written to is none
    for number, (node, value) in enumerate(constants.items()):
        if node.op != "get_attr":
            _replace(graph, node, f"folded_{number}", value)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def blame(error: Exception) -> Exception:
    """What to say of a program that cannot be traced: the line of it that looked at a value."""
    place = _own_line(error)
    if place is None:
        return error
    cause = str(error).strip().split("\n")[0].split(". ")[0]
    return FitError(
        "density: the program must do the same whatever the values of its sites (no `if`, `.item()`, numpy or loop "
        f"that depends on one), got {type(error).__name__} at {place}: {cause}; write it with torch.where, or pass "
        'mode="eager", which is slow'
    )


def _compile(graph: fx.GraphModule, examples: Sequence[Tensor]) -> tuple[Callable[..., Outputs] | None, str]:
    """The compiled graph, or None and why there is none."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch._inductor as inductor  # slow to import

            compiled = inductor.compile(graph, list(examples))
            found = compiled(*examples)
    except Exception as error:  # noqa: BLE001 (a missing compiler, header or operator: whatever it is, the graph works)
        return None, f"torch cannot compile it here ({type(error).__name__})"
    for mine, wanted in zip(found, graph(*examples), strict=True):
        if not torch.allclose(mine, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            return None, "the compiled graph gave other values than the traced one"
    return compiled, "the run is long enough to pay for it"


def _time(function: Callable[..., Outputs], examples: Sequence[Tensor]) -> float:
    """Seconds of one call, the best of some."""
    best = math.inf
    with torch.no_grad():
        for _ in range(TIMED_CALLS):
            began = time.perf_counter()
            function(*examples)
            best = min(best, time.perf_counter() - began)
    return best


def _foldable(node: fx.Node, constants: dict[fx.Node, Tensor]) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or _mutates(node):
        return False
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and all(source in constants for source in node.all_input_nodes)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _at(arguments: Any, constants: dict[fx.Node, Tensor]) -> Any:  # noqa: ANN401 (nested arguments)
    return fx.node.map_arg(arguments, lambda node: constants[node])


def _replace(graph: fx.GraphModule, node: fx.Node, name: str, value: Tensor) -> None:
    graph.register_buffer(name, value.contiguous())
    with graph.graph.inserting_before(node):
        node.replace_all_uses_with(graph.graph.get_attr(name))
    graph.graph.erase_node(node)


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
