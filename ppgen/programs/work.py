"""Expected cost of a graph of operators, traced and compiled: by counts, never by the clock.

Rounding differs between the two, and chains amplify it. A choice by the clock would give other draws whenever the
machine is busy, or torch's cache is cold; a choice by counts gives the same run the same draws again.

The seconds are those of the twelve programs of ``benchmarks/compile.py``, on one thread of a shared two-core machine,
fitted to within a third; they include loading torch's compiler. The first graph ever compiled on a machine takes some
20 seconds more, for the headers of torch.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

__all__ = ["Work", "work_of"]

PER_NODE, PER_NUMBER, PER_HARD_NUMBER = 1.1e-5, 0.5e-9, 6e-9  # seconds of a traced call that compiling saves
COLD, COLD_PER_NODE, WARM = 12.0, 0.05, 0.4  # seconds to compile, first time; share of them from torch's cache
PAYS = 1.2  # of those first seconds: what is saved is reckoned up to two thirds too high, and a cold one is dear
HARD = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("exp", "expm1", "log", "log1p", "pow", "sigmoid", "tanh", "lgamma", "digamma", "erf", "erfc", "sin")
) | {torch.ops.aten.cos, torch.ops.aten.logsumexp, torch.ops.aten._softmax, torch.ops.aten._log_softmax}


@final
@dataclass(frozen=True)
class Work:
    """Operators of a graph, the numbers they write, those of them that take a transcendental function, and widths.

    ``width`` is how many numbers the operator writes that a number is written by, on average.
    """

    nodes: int
    numbers: int
    hard: int
    width: float

    @property
    def saved(self) -> float:
        """Seconds that a compiled call takes less than a traced one."""
        return PER_NODE * self.nodes + PER_NUMBER * self.numbers + PER_HARD_NUMBER * self.hard

    @property
    def cold(self) -> float:
        """Seconds to compile what was never compiled on this machine."""
        return COLD + COLD_PER_NODE * self.nodes

    def pays(self, calls: float) -> bool:
        """Tell whether compiling pays over so many calls."""
        return calls * self.saved >= PAYS * self.cold

    def words(self, calls: float) -> str:
        """Say what compiling costs and saves, over so many calls."""
        return (
            f"compiling takes about {self.cold:.1f} s the first time, {WARM * self.cold:.1f} s from torch's cache, and "
            f"saves about {calls * self.saved:.1f} s of {calls:,.0f} calls"
        )


def work_of(graph: fx.GraphModule) -> Work:
    """Count what a traced graph does."""
    called = [node for node in graph.graph.nodes if node.op == "call_function"]
    sizes = [value.numel() if isinstance(value := node.meta.get("val"), Tensor) else 0 for node in called]
    hard = [size for node, size in zip(called, sizes, strict=True) if getattr(node.target, "overloadpacket", 0) in HARD]
    total = sum(sizes)
    return Work(len(called), total, sum(hard), sum(size * size for size in sizes) / max(1, total))
