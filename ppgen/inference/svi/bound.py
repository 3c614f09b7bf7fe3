"""A bound and its gradient as functions of flat parameters and a batch: traced, compiled or eager."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call

from ppgen.data.parts import each, parts
from ppgen.inference.svi.objective import Objective
from ppgen.inference.svi.options import Options
from ppgen.inference.svi.parallel import Group
from ppgen.programs.parameters import Parameters
from ppgen.programs.task import Task
from ppgen.programs.tracing import Batch, Mode, blame, build

__all__ = ["Bound", "build_bound", "gradients_of"]

log = logging.getLogger(__name__)

LOOK_DRAWS = 16  # draws of the guide that a look at the bound averages over
FEWER, BATCHES = 4, 5  # of a run in minibatches: draws, and rows in batches, a tenth of what a window of steps costs
MOST_CALLS = 10_000  # steps that a run is expected to take at most, to judge whether to compile


@final
class Bound:
    """The bound's gradient as one function of flat parameters and a batch: traced, compiled or eager."""

    def __init__(
        self,
        task: Task,
        objective: Objective,
        parameters: Parameters,
        options: Options,
        outside: Task | None,
        mode: Mode,
        max_steps: int,
        processes: Group,
    ) -> None:
        self.task, self.objective, self.parameters, self.options = task, objective, parameters, options
        self.processes, self.types = processes, len(parameters.types)
        examples = [*parameters.flat(), self._baselines(), *self.batch(0)(0)]
        self.built = build_bound(self._graph, self._eager, examples, mode, min(max_steps, MOST_CALLS))
        decided = options.early_stopping or outside is not None
        args, kwargs = self._looked_at() if outside is None else (outside.args, outside.kwargs)
        draws = LOOK_DRAWS if options.batch_size is None or outside is not None else FEWER
        draws = draws if objective.plan.draws else 1
        self.evaluate = self._evaluator(args, kwargs, draws, mode) if decided else None

    def gradient(self, *inputs: Tensor) -> Sequence[Tensor]:
        """See `ppgen.inference.svi.training.Gradient`."""
        return self.built(*inputs)

    def batch(self, seed: int) -> Callable[[int], Sequence[Tensor]]:
        """Rows of data and inputs that come at each step beside the parameters; nothing when all rows are used."""
        size = self.options.batch_size
        if size is None:
            return lambda _: ()
        rows, x, u = _Rows(self.task.rows, size, seed), self.task.args[0], self.task.kwargs["u"]

        def at(step: int) -> Sequence[Tensor]:
            index = self.processes.share(rows.at(step)).to(x.device)
            return x[index], *(part[index] for part in parts(u))

        return at

    def fault(self, flat: Sequence[Tensor], batch: Sequence[Tensor]) -> str:
        """Name the first site whose log density is not finite, in the words of a message."""
        self.parameters.store(flat)
        _, declared = self.parameters.split(flat)
        site = self.objective.bad_site(*self.task.call(batch), declared)
        return f' (site "{site}")' if site else ""

    def _baselines(self) -> Tensor:
        return torch.zeros(len(self.objective.plan.scored))

    @property
    def _particles(self) -> int:
        """Draws that the bound is averaged over: those of an importance-weighted bound are inside it."""
        return self.options.particles if self.objective.weighted is None else 1

    def _graph(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Bound, baselines and gradients of minus the bound; all particles at once."""
        return self._gradient(inputs, self._particles, at_once=True)

    def _eager(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The same, one particle after the other."""
        particles = self._particles
        found = [self._gradient(inputs, 1, at_once=False) for _ in range(particles)]
        return found[0] if particles == 1 else [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]

    def _gradient(self, inputs: Sequence[Tensor], particles: int, *, at_once: bool) -> Sequence[Tensor]:
        baselines, data = inputs[self.types], inputs[self.types + 1 :]

        def estimate(flat: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            call = (*self.task.call(data), baselines, particles, at_once)
            surrogate, bound, means = self._estimate(flat, *call)
            return -surrogate, (bound, means)

        return gradients_of(estimate, inputs[: self.types])

    def _estimate(
        self,
        flat: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        baselines: Tensor,
        particles: int,
        at_once: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own, declared = self.parameters.split(flat)
        call = (args, kwargs, declared, baselines, particles, at_once)
        found: tuple[Tensor, Tensor, Tensor] = functional_call(self.objective, own, call)
        return found

    def _looked_at(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the programs with the rows that are looked at: where the data can be split, some of them."""
        args, kwargs = self.task.args, self.task.kwargs
        if self.options.batch_size is None:
            return args, kwargs
        order = torch.randperm(self.task.rows, generator=torch.Generator().manual_seed(0))
        rows = order[: BATCHES * self.options.batch_size]
        u = each(kwargs["u"], lambda part: part[rows.to(part.device)])
        return (args[0][rows.to(args[0].device)],), {**kwargs, "u": u}

    def _evaluator(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], draws: int, mode: Mode
    ) -> Callable[[Sequence[Tensor]], float]:
        """The bound of rows that are looked at, always by the same random numbers."""

        def by(particles: int, times: int, at_once: bool) -> Callable[..., Sequence[Tensor]]:
            def bound(*flat: Tensor) -> Sequence[Tensor]:
                call = (args, kwargs, self._baselines(), particles, at_once)
                return (torch.stack([self._estimate(flat, *call)[1] for _ in range(times)]).mean(),)

            return bound

        if self.objective.weighted is not None:
            draws = math.ceil(draws / self.objective.weighted.draws)
        at_once = by(draws, 1, True) if self.objective.weighted is None else by(1, draws, True)
        one_by_one = by(1, draws, False)
        built = build_bound(at_once, one_by_one, list(self.parameters.flat()), mode, 0)

        def evaluate(flat: Sequence[Tensor]) -> float:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                return float(built(*flat)[0])

        return evaluate


def gradients_of(
    estimate: Callable[[Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]], flat: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The record of an estimate, and the gradient of its first value, by flat parameters."""
    leaves = [vector.detach().requires_grad_() for vector in flat]
    with torch.enable_grad():
        value, records = estimate(leaves)
        gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return *(record.detach() for record in records), *gradients


def build_bound(
    graph: Callable[..., Sequence[Tensor]],
    eager: Callable[..., Sequence[Tensor]],
    examples: Sequence[Tensor],
    mode: Mode,
    calls: int,
) -> Batch:
    """Trace (and compile) ``graph``; or use ``eager``, if that is asked for or nothing else works."""
    if mode == "eager":
        return Batch(eager, "eager", "asked for")
    try:
        return build(graph, examples, mode, calls)
    except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
        message = blame(error)
        if mode != "auto":
            raise message from (None if message is error else error)
        reason = str(message).split("\n")[0]
        log.warning("svi: the bound cannot be traced and runs eagerly, which is slower: %s", reason)
        return Batch(eager, "eager", reason)


@final
class _Rows:
    """Rows of each step's batch, always as many: every pass is in a new order, its incomplete last batch left out."""

    def __init__(self, total: int, size: int, seed: int) -> None:
        self.total, self.size, self.seed = total, size, seed
        self.order, self.turn = torch.empty(0, dtype=torch.int64), -1

    def at(self, step: int) -> Tensor:
        """Indices (B,) of the batch of a step."""
        turn, place = divmod(step, self.total // self.size)
        if turn != self.turn:
            generator = torch.Generator().manual_seed(self.seed + turn)
            self.order, self.turn = torch.randperm(self.total, generator=generator), turn
        return self.order[place * self.size : (place + 1) * self.size]
