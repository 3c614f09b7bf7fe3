"""Trials of decisions: choices of one of two sides, what was shown, and in which session; read or simulated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd

from ppgen.behavior.tables import csv_table
from ppgen.errors import DataError

__all__ = ["LAST", "Trials", "read_trials", "simulate_trials"]

LARGEST = 500_000_000  # bytes of a file that is read
LAST = "last choice"  # the input that tells the choice before: 1, -1, and 0 at the beginning of a session
STRATEGIES = np.array([[5.0, -0.3, 0.0], [2.0, 1.0, 1.5], [1.5, -1.0, -1.5]])  # engaged; to one side; to the other
STAY, LAPSE = 0.97, 0.03


@final
@dataclass(frozen=True)
class Trials:
    """Choices and inputs of every session, padded to the longest.

    Attributes
    ----------
    x : (S, T, 1) choices, 0 or 1; NaN where there is none, and behind the end of a session.
    u : (S, T, U) inputs in standard deviations; zero behind the end.
    sessions, inputs : their names.
    center, spread : (U,) what was taken off the inputs, and what they were divided by.
    truth : (S, T) the strategy of a simulated trial, -1 behind the end; None for recorded ones.
    """

    x: np.ndarray
    u: np.ndarray
    sessions: tuple[str, ...]
    inputs: tuple[str, ...]
    center: np.ndarray
    spread: np.ndarray
    truth: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Number of trials of each session, up to its last choice."""
        seen = ~np.isnan(self.x[..., 0])
        return np.where(seen.any(1), seen.shape[1] - seen[:, ::-1].argmax(1), 0)

    def of(self, chosen: Sequence[int]) -> "Trials":
        """Some of the sessions."""
        index = np.asarray(chosen)
        truth = None if self.truth is None else self.truth[index]
        names = tuple(self.sessions[i] for i in index)
        return Trials(self.x[index], self.u[index], names, self.inputs, self.center, self.spread, truth)


def read_trials(
    path: Path, choice: str, stimuli: Sequence[str], session: str | None = None, *, last: bool = True
) -> Trials:
    """Read a table with a row for each trial, in order.

    Parameters
    ----------
    path : a CSV file.
    choice : column of choices, 0 and 1, empty where there was none.
    stimuli : columns of numbers that were there before the choice.
    session : column that tells sessions apart; None for one session.
    last : whether the choice before is an input too.

    Raises
    ------
    FileError, DataError : no such file or column, other choices, gaps in a stimulus; said in words.
    """
    table = csv_table("decisions", path, LARGEST)
    wanted = [choice, *stimuli, *([session] if session else [])]
    if not stimuli:
        raise DataError("decisions: there must be at least one stimulus, got none; name a column")
    if lacking := [name for name in wanted if name not in table]:
        raise DataError(f"decisions: {path.name} must have the columns {wanted}, got {list(table)}: {lacking} lack")
    chosen = _numbers(table, choice)
    if (odd := ~np.isnan(chosen) & (chosen != 0) & (chosen != 1)).any():
        row = int(odd.argmax())
        raise DataError(f"decisions: {choice} must be 0, 1 or empty, got {chosen[row]:g} at row {row}")
    values = np.stack([_numbers(table, name) for name in stimuli], -1)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise DataError(
            f"decisions: {stimuli[column]} must be a number in every trial, got none at row {row}; leave the trial out"
        )
    groups = table[session].astype(str).to_numpy() if session else np.full(len(table), "all")
    return _stacked(chosen, values, groups, tuple(stimuli), last)


def simulate_trials(sessions: int = 12, trials: int = 200, random_seed: int = 0) -> Trials:
    """Choices by three strategies that last some thirty trials each, with lapses; a trial of a hundred has none."""
    rng = np.random.default_rng(random_seed)
    z, chosen = np.empty((sessions, trials), int), np.empty((sessions, trials))
    stimulus = rng.normal(size=(sessions, trials))
    for s in range(sessions):
        before = 0.0
        for t in range(trials):
            z[s, t] = z[s, t - 1] if t and rng.random() < STAY else rng.integers(3)
            drive = STRATEGIES[z[s, t]] @ [stimulus[s, t], before, 1.0]
            chance = LAPSE / 2 + (1 - LAPSE) / (1 + np.exp(-drive))
            chosen[s, t] = rng.random() < chance
            before = 2 * chosen[s, t] - 1
    chosen[rng.random(chosen.shape) < 0.01] = np.nan
    groups = np.repeat([f"session {s + 1}" for s in range(sessions)], trials)
    found = _stacked(chosen.ravel(), stimulus.reshape(-1, 1), groups, ("stimulus",), True)
    return Trials(found.x, found.u, found.sessions, found.inputs, found.center, found.spread, z)


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    values = pd.to_numeric(table[name], errors="coerce")
    if (odd := values.isna() & table[name].notna()).any():
        row = int(odd.to_numpy().argmax())
        raise DataError(f"decisions: {name} must hold numbers, got {table[name].iloc[row]!r} at row {row}")
    found = values.to_numpy(float)
    if np.isinf(found).any():
        raise DataError(f"decisions: {name} must be finite, got {found[np.isinf(found)][0]}")
    return found


def _stacked(chosen: np.ndarray, values: np.ndarray, groups: np.ndarray, names: tuple[str, ...], last: bool) -> Trials:
    sessions = tuple(dict.fromkeys(groups.tolist()))
    rows = [np.flatnonzero(groups == name) for name in sessions]
    longest = max(map(len, rows), default=0)
    center, spread = values.mean(0), values.std(0)
    if (constant := spread <= 1e-12 * abs(center)).any():
        raise DataError(f"decisions: {names[int(constant.argmax())]} must vary, got one value in all trials")
    x = np.full((len(rows), longest, 1), np.nan)
    u = np.zeros((len(rows), longest, len(names) + last))
    for s, own in enumerate(rows):
        x[s, : len(own), 0] = chosen[own]
        u[s, : len(own), : len(names)] = (values[own] - center) / spread
        if last:
            u[s, 1 : len(own), -1] = np.nan_to_num(2 * chosen[own[:-1]] - 1)
    if last:
        names, center, spread = (*names, LAST), np.append(center, 0.0), np.append(spread, 1.0)
    return Trials(x, u, sessions, names, center, spread)
