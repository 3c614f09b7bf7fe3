"""The loop around a sampler: tuning and drawing, kept draws, checkpoints, Ctrl-C, and the progress bar."""

import math
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ppgen.errors import FileError
from ppgen.inference.mcmc.adaptation import Spread, StepSize, Tuning, pack, unpack, window_ends, window_start
from ppgen.inference.mcmc.enough import Enough, Stop
from ppgen.inference.mcmc.hamiltonian import Ensemble, Leapfrog, Record
from ppgen.inference.mcmc.starts import Start
from ppgen.inference.mcmc.store import Arrays
from ppgen.storage.checkpoint import Checkpoint

__all__ = ["Run", "Sampler", "first_tuning", "worst_rhat"]

HISTORY = ("lp", "acceptance_rate", "n_steps", "step_size", "diverging", "trajectory_length")
WHOLE = ("n_steps", "tree_depth")
FIRST_STEP = 0.7  # in whitened coordinates, times P^(-1/4)
ACCEPTED, HALVINGS = 0.8, 30  # of one step, and how often it is halved at most
DELAY = 1.0  # seconds before a bar is shown
REFRESH = 0.5  # seconds between looks at R-hat
CONSIDERED = 20  # iterations between two looks at whether to compile
UNSETTLED = 0.25  # share of tuning in which steps are too short, and too many, to tell how many there will be
RHAT_DRAWS = 200  # newest draws that the R-hat of the bar looks at


@runtime_checkable
class Sampler(Protocol):
    """One transition of every chain, by some algorithm."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the records."""

    def transition(
        self, ensemble: Ensemble, tuning: Tuning, generator: torch.Generator, *, adapt: bool
    ) -> tuple[Ensemble, Record]:
        """Move every chain once; while ``adapt``, learn from it."""


@final
@dataclass
class Run:
    """A run under way: where its chains are, what they learnt, and the arrays it fills.

    ``v`` holds the draws (S, C, P), ``stats`` their records (S, names, C), ``history`` a row per iteration. With
    ``enough`` it may stop before ``draws``.
    """

    leapfrog: Leapfrog
    sampler: Sampler
    ensemble: Ensemble
    tuning: Tuning
    generator: torch.Generator
    tune: int
    draws: int
    arrays: Arrays
    enough: Enough | None = None
    interrupted: bool = False
    v: Tensor = field(init=False)
    stats: Tensor = field(init=False)
    history: Tensor = field(init=False)
    sums: list[int] = field(init=False)
    summed: int = field(init=False)
    kept: int = 0

    def __post_init__(self) -> None:
        chains, size = self.ensemble.v.shape
        self.v = self.arrays.make("draws", (self.draws, chains, size))
        self.history = self.arrays.make("history", (self.tune + self.draws, len(HISTORY)))
        self.stats = self.arrays.make("stats", (self.draws, len(self.sampler.names), chains))
        self.kept = max(0, self.tuning.iteration - self.tune)
        self.sums, self.summed = [0, 0, 0], 0
        self.stop = Stop(self.draws) if self.enough is None else self.enough.first(self.draws)
        self.counted = self.leapfrog.steps

    def go(self, progressbar: bool, saved: Checkpoint | None = None, every: int = 100) -> None:
        """Make the iterations that are left; on Ctrl-C keep what there is, if there is a draw."""
        ends, start, total = window_ends(self.tune), window_start(self.tune), self.tune + self.draws
        with Bar(self, total, progressbar) as bar, torch.no_grad():
            try:
                while self.tuning.iteration < total and not self.stop.reached:
                    self._iterate(ends, start)
                    bar.update()
                    self._look()
                    if saved is not None and self.tuning.iteration % every == 0:
                        self.save(saved)
            except KeyboardInterrupt:
                if self.kept == 0:
                    raise
                self.interrupted = True
        if saved is not None and not self.interrupted:
            self.save(saved)

    def save(self, saved: Checkpoint) -> None:
        """Replace the checkpoint by the present state."""
        self.arrays.flush()
        self._sum_up()
        ensemble = {f"place/{name}": getattr(self.ensemble, name) for name in ("v", "value", "gradient")}
        rest = {"generator": self.generator.get_state(), "sums": torch.tensor(self.sums)}
        choice = torch.tensor([self.leapfrog.batch.mode == "compiled", self.leapfrog.steps - self.counted])
        saved.save(pack(self.tuning, "tuning") | pack(self.stop, "stop") | ensemble | rest | {"choice": choice})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a state that `save` wrote.

        Raises
        ------
        FileError : the draws beside it are not those that were written; or it was compiled, and nothing compiles here.
        """
        self._restore_choice(*tensors["choice"].tolist())
        there = {name: value.to(self.ensemble.v.device) for name, value in tensors.items()}
        self.tuning = unpack(self.tuning, there, "tuning")
        self.stop = unpack(self.stop, dict(tensors), "stop")
        self.ensemble = Ensemble(*(there[f"place/{name}"] for name in ("v", "value", "gradient")))
        self.generator.set_state(tensors["generator"])
        self.kept = max(0, self.tuning.iteration - self.tune)
        self._sum_up()
        if self.sums != tensors["sums"].tolist():
            raise FileError(
                f"mcmc: the draws in checkpoint {self.arrays.folder} must be those that were written, they were "
                "changed or cut; delete the folder to start anew"
            )

    def records(self) -> dict[str, Float[Tensor, "C S"]]:
        """The sampler's records of the kept draws."""
        found = {name: self.stats[: self.kept, i].T.contiguous() for i, name in enumerate(self.sampler.names)}
        return {
            name: value.bool() if name == "diverging" else value.long() if name in WHOLE else value
            for name, value in found.items()
        }

    def table(self) -> pd.DataFrame:
        """One row per iteration: means over chains, and how many diverged."""
        done = self.tuning.iteration if not self.interrupted else self.tune + self.kept
        rows = pd.DataFrame(self.history[:done].numpy().copy(), columns=list(HISTORY))
        rows.insert(0, "step", np.arange(1, done + 1))
        rows.insert(1, "tuning", np.arange(done) < self.tune)
        return rows.drop(columns=[] if self.tuning.trajectory.count else ["trajectory_length"])

    def why(self) -> str:
        """Why the run ended when it did."""
        if self.interrupted:
            return f"interrupted after {self.kept} draws a chain"
        if self.enough is None:
            return f"{self.kept} draws a chain, as asked for"
        if self.stop.reached:
            found = f"least effective size {self.stop.size:,.0f} of {self.enough.wanted:,.0f} wanted"
            return f"{found}, after {self.kept} draws a chain"
        return f"{self.kept} draws a chain, the most allowed, before the effective size of {self.enough.wanted:,.0f}"

    def _sum_up(self) -> None:
        """Carry the checksums of history, draws and their records on to the present iteration."""
        done, kept = self.tuning.iteration, max(0, self.summed - self.tune)
        parts = (self.history[self.summed : done], self.v[kept : self.kept], self.stats[kept : self.kept])
        self.sums = [zlib.crc32(part.numpy().data, old) for part, old in zip(parts, self.sums, strict=True)]
        self.summed = done

    def _restore_choice(self, compiled: int, since: int) -> None:
        """Go on with the graph that the run had: the other one rounds otherwise."""
        self.counted = self.leapfrog.steps - since
        if compiled and self.leapfrog.open:
            self.leapfrog.compile("so it was when the checkpoint was written")
        if compiled != (self.leapfrog.batch.mode == "compiled"):
            raise FileError(
                f"mcmc: the run in checkpoint {self.arrays.folder} must go on compiled, as it began, got: "
                f"{self.leapfrog.batch.reason}; mend that, or delete the folder to start anew"
            )

    def _look(self) -> None:
        """See from time to time whether draws are enough, and whether compiling would pay for those to come."""
        if self.enough is not None and self.kept == min(self.stop.next, self.draws):
            self.stop = self.enough.look(self.v[: self.kept], self.records(), self.stop)
        if self.tuning.iteration % CONSIDERED == 0 and not self.stop.reached:
            calls, self.counted = self.leapfrog.steps - self.counted, self.leapfrog.steps
            left = self.tune + min(self.stop.expected, self.draws) - self.tuning.iteration
            if self.tuning.iteration >= UNSETTLED * self.tune:
                self.leapfrog.reconsider(calls / CONSIDERED * left)

    def _iterate(self, ends: frozenset[int], start: int) -> None:
        number, tuning = self.tuning.iteration, self.tuning
        adapt = number < self.tune
        ensemble, record = self.sampler.transition(self.ensemble, tuning, self.generator, adapt=adapt)
        if adapt and number >= start:
            tuning.spread.learn(ensemble.v, torch.isfinite(ensemble.value))
        tuning.iteration += 1
        if tuning.iteration in ends:
            tuning.renew(ensemble.v)
            ensemble = self.leapfrog.at(ensemble.v, tuning.factor)
        self.ensemble = ensemble
        self._note(number, record)

    def _note(self, number: int, record: Record) -> None:
        row = [record[name].sum() if name == "diverging" else _mean(record[name]) for name in HISTORY[:-1]]
        length = self.tuning.trajectory.log_length
        self.history[number, :-1] = torch.stack(row)
        self.history[number, -1] = math.exp(length)
        if number >= self.tune:
            self.v[number - self.tune] = self.ensemble.v
            self.stats[number - self.tune] = torch.stack([record[name].double() for name in self.sampler.names])
            self.kept = number - self.tune + 1


def first_tuning(leapfrog: Leapfrog, start: Start, generator: torch.Generator | None = None) -> Tuning:
    """A metric from draws around the starting places, where there are some; and a step that ``generator`` tries."""
    factor = leapfrog.identity
    if start.draws is not None:
        spread = Spread.empty(start.draws[0], factor)
        for draw in start.draws:
            spread.learn(draw, torch.isfinite(draw).all(-1))
        factor = spread.factor(factor)
    size = FIRST_STEP * leapfrog.density.size**-0.25
    if generator is not None:
        size = _tried(leapfrog, leapfrog.at(start.v, factor), factor, size, generator)
    return Tuning(factor, StepSize(math.log(size)), Spread.empty(start.v, factor))


def _tried(leapfrog: Leapfrog, ensemble: Ensemble, factor: Tensor, size: float, generator: torch.Generator) -> float:
    """Halve the step size until one step is accepted most of the time (Hoffman & Gelman 2014, algorithm 4)."""
    momentum = torch.randn(ensemble.v.shape, generator=generator, dtype=ensemble.v.dtype, device=ensemble.v.device)
    trusted, before = torch.isfinite(ensemble.value), 0.5 * momentum.square().sum(-1) - ensemble.value
    for _ in range(HALVINGS):
        end, last = leapfrog(ensemble, momentum, size, 1, factor)
        gain = before - (0.5 * last.square().sum(-1) - end.value)
        acceptance = torch.nan_to_num(gain, nan=-math.inf, posinf=-math.inf).clamp_max(0.0).exp()
        if not trusted.any() or float(acceptance[trusted].mean()) >= ACCEPTED:
            break
        size /= 2
    return size


@final
class Bar:
    """The progress bar: draws per second, divergences, and R-hat of the newest draws."""

    def __init__(self, run: Run, total: int, shown: bool) -> None:
        self.run, self.shown, self.looked = run, shown, time.monotonic()
        self.bar: Any = tqdm(total=total, initial=run.tuning.iteration, desc="mcmc", disable=not shown, delay=DELAY)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """One iteration more."""
        self.bar.update()
        if self.shown and time.monotonic() - self.looked > REFRESH:
            self.looked = time.monotonic()
            self.bar.set_postfix_str(self.words(), refresh=False)

    def words(self) -> str:
        """Text that the bar shows beside the count."""
        run = self.run
        if run.kept < 4:
            return f"tuning, step size {run.tuning.step.now:.2g}"
        diverged = int(run.history[run.tune : run.tune + run.kept, HISTORY.index("diverging")].sum())
        rate = float(self.bar.format_dict["rate"] or 0.0) * run.v.shape[1]
        newest = run.v[max(0, run.kept - RHAT_DRAWS) : run.kept]
        return f"{rate:.0f} draws/s, {diverged} divergences, R-hat {worst_rhat(newest):.3f}"


def worst_rhat(v: Float[Tensor, "S C P"]) -> float:
    """Largest split R-hat of the unconstrained numbers; NaN for fewer than four draws."""
    half = len(v) // 2
    if half < 2:
        return math.nan
    parts = torch.cat([v[:half], v[-half:]], 1)  # (S/2, 2C, P)
    within, between = parts.var(0).mean(0), parts.mean(0).var(0)
    return float(((half - 1) / half + between / within).sqrt().max())


def _mean(values: Tensor) -> Tensor:
    return values.double().nanmean()
