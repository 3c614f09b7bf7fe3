r"""The bound of a named guide over fixed draws: a deterministic function of the guide's parameters.

With the standard normal numbers behind the draws held fixed, the mean over them is an ordinary function, which can be
climbed until it is flat. The numbers come in antithetic pairs, and where there are enough of them their covariance is
made the identity: the bound of a normal posterior is then exact, and so is the guide.

References: Burroni, Domke & Sheldon (2024); Giordano, Ingram & Broderick (2024); Owen (2013), ch. 8, for the pairs.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from ppgen.data.parts import parts
from ppgen.inference.svi.bound import build_bound, gradients_of
from ppgen.inference.svi.guides import FlatGuide, NormalGuide
from ppgen.inference.svi.objective import Objective
from ppgen.programs.parameters import Parameters
from ppgen.programs.task import Task
from ppgen.programs.tracing import Batch, Mode
from ppgen.programs.written import Written

__all__ = ["FixedDraws", "matched_normals"]

LARGEST_CALL = 1 << 24  # numbers that the operators of one call may write
CALLS_PER_GROUP = 100  # of the graph for each group of rows and draws, as a compiler is told
SOBOL = torch.quasirandom.SobolEngine.MAXDIM


@final
class FixedDraws:
    """The bound and its gradient by the flat parameters, over given draws and the first so many rows.

    Rows go through in groups and draws in parts, so that one call of the graph writes a bounded count of numbers.

    Parameters
    ----------
    batch_size : rows that a group holds at least; None takes all rows at once, as a program of unknown data must.
    draws : number of draws of one part at most.
    """

    def __init__(
        self,
        task: Task,
        objective: Objective,
        parameters: Parameters,
        guide: FlatGuide,
        *,
        mode: Mode,
        batch_size: int | None,
        draws: int,
        seed: int,
    ) -> None:
        self.task, self.objective, self.parameters, self.guide, self.mode = task, objective, parameters, guide, mode
        self.names = self._frame_names()
        self.graphs: dict[int, Batch] = {}
        self.order = torch.randperm(task.rows, generator=torch.Generator().manual_seed(seed))
        self.least = task.rows if batch_size is None else batch_size
        self.whole = batch_size is None
        cost = self._cost()
        self.part = max(1, min(draws, 2 ** int(math.log2(max(1.0, LARGEST_CALL / cost)))))
        self.group = task.rows
        if not self.whole:
            self.group = min(task.rows, self.least * max(1, int(LARGEST_CALL / (cost * self.part))))

    def value_and_grad(
        self, flat: Sequence[Tensor], noise: Float[Tensor, "M W"], rows: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The bound of the first ``rows`` rows, standing for all, and its gradient."""
        value, gradients = torch.zeros((), dtype=flat[0].dtype, device=flat[0].device), [v * 0 for v in flat]
        frame, parts = self._frame(), noise.split(self.part)
        for index in self.order[:rows].split(self.group):
            batch = self._rows(index)
            for part in parts:
                weight = len(index) / rows * len(part) / len(noise)
                found, *slopes = self._graph(flat, part, batch)(*flat, *frame, part, *batch)
                value = value + weight * found
                for gradient, slope in zip(gradients, slopes, strict=True):
                    gradient += weight * slope
        return value, gradients

    def is_random(self) -> bool:
        """Tell whether the program draws numbers of its own, so that the bound is no function of its parameters."""
        like = self.guide.centre
        noise = torch.zeros(self.part, self.guide.noise_size, dtype=like.dtype, device=like.device)
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(self.value_and_grad(self.parameters.flat(), noise, min(self.group, self.task.rows))[0])
        return not torch.equal(found[0].nan_to_num(), found[1].nan_to_num())

    @property
    def built(self) -> Batch:
        """The graph that was built first."""
        return next(iter(self.graphs.values()))

    def _graph(self, flat: Sequence[Tensor], part: Tensor, batch: Sequence[Tensor]) -> Batch:
        size = len(batch[0]) if batch else 0
        if size not in self.graphs:
            examples = [*flat, *self._frame(), part, *batch]
            calls = CALLS_PER_GROUP * math.ceil(self.task.rows / self.group)
            self.graphs[size] = build_bound(self._gradient, self._one_by_one, examples, self.mode, calls)
        return self.graphs[size]

    def _gradient(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Bound and gradient, all draws of a part at once."""
        types = len(self.parameters.types)
        frame = dict(zip(self.names, inputs[types:], strict=False))
        noise, *data = inputs[types + len(frame) :]

        def bound(flat: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
            own, declared = self.parameters.split(flat)
            call = (*self.task.call(data), declared, noise)
            value = functional_call(_Averaged(self.objective), {**_inside(own), **_inside(frame)}, call)
            return value, (value,)

        return gradients_of(bound, inputs[:types])

    def _one_by_one(self, *inputs: Tensor) -> Sequence[Tensor]:
        place = len(self.parameters.types) + len(self.names)
        before, noise, after = inputs[:place], inputs[place], inputs[place + 1 :]
        found = [self._gradient(*before, row[None], *after) for row in noise]
        return [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]

    def _rows(self, index: Tensor) -> Sequence[Tensor]:
        if self.whole:
            return ()
        x, u = self.task.args[0], self.task.kwargs["u"]
        index = index.to(x.device)
        return x[index], *(part[index] for part in parts(u))

    def _frame_names(self) -> list[str]:
        frame = {id(value) for value in self.guide.frame.values()} if isinstance(self.guide, NormalGuide) else set()
        return [name for name, value in self.objective.named_buffers() if id(value) in frame]

    def _frame(self) -> list[Tensor]:
        buffers = dict(self.objective.named_buffers())
        return [buffers[name] for name in self.names]

    def _cost(self) -> int:
        """Numbers that a call writes for each draw, of as many rows as a group holds at least."""
        like = self.guide.centre
        noise = torch.zeros(1, self.guide.noise_size, dtype=like.dtype, device=like.device)
        rows, totals = min(self.least, max(1, self.task.rows // 2)), []
        for count in (rows, 2 * rows):
            with Written() as written, torch.no_grad():
                self._gradient(*self.parameters.flat(), *self._frame(), noise, *self._rows(self.order[:count]))
            totals.append(written.numbers)
        return max(1, totals[0] if self.whole else (totals[1] - totals[0]) * self.least // rows)


@final
class _Averaged(torch.nn.Module):
    """The objective's mean over given noise, as the module that `functional_call` wants."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, *call: object) -> Tensor:
        """See `Objective.averaged`."""
        return self.objective.averaged(*call)  # type: ignore[arg-type]


def _inside(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"objective.{name}": value for name, value in values.items()}


def matched_normals(
    count: int, size: int, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "M W"]:
    """Standard normal numbers whose mean is zero and whose covariance is the identity, where ``count`` allows it.

    Parameters
    ----------
    count : rows M, even. Of up to a quarter as many columns W the covariance is exactly the identity; of more,
        each column's variance is one.
    generator : one of the CPU; the numbers are scrambled Sobol points where there are few columns.
    """
    half = count // 2
    if size <= min(half // 2, SOBOL):
        seed = int(torch.randint(2**31, (1,), generator=generator))
        points = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed).draw(half, dtype=torch.float64)
        found = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9))
        root = torch.linalg.cholesky(found.T @ found / half)
        found = torch.linalg.solve_triangular(root, found.T, upper=False).T
    else:
        found = torch.randn(half, size, generator=generator, dtype=torch.float64)
        found = found / found.square().mean(0).sqrt()
    return torch.cat([found, -found]).to(device, dtype)
