"""The job of the decision tool: read or simulate, compare, fit, and write a folder with a report."""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from ppgen.behavior.choice_report import choice_sections, trials_table
from ppgen.behavior.choices import Trials, read_trials, simulate_trials
from ppgen.behavior.files import write_json
from ppgen.behavior.folders import check_output, output_folder
from ppgen.behavior.report import render
from ppgen.behavior.strategies import study, weights_table

__all__ = ["demo", "fit"]

Say = Callable[[str], None]


def fit(
    path: Path, out: Path, choice: str, stimuli: Sequence[str], session: str | None, *,
    last: bool, most: int, random_seed: int, overwrite: bool, say: Say,
) -> None:  # fmt: skip
    """Find the strategies in a table of trials and write everything about them into ``out``."""
    check_output(out, overwrite, [path])
    trials = read_trials(path, choice, stimuli, session, last=last)
    _write(trials, out, most, random_seed, overwrite, say, [path])


def demo(out: Path, *, most: int, random_seed: int, overwrite: bool, say: Say) -> None:
    """Find the strategies in simulated choices, and say how well."""
    check_output(out, overwrite)
    _write(simulate_trials(random_seed=random_seed), out, most, random_seed, overwrite, say, [])


def _write(
    trials: Trials, out: Path, most: int, random_seed: int, overwrite: bool, say: Say, inputs: Sequence[Path]
) -> None:
    found = study(trials, most, random_seed, say)
    with output_folder(out, overwrite, inputs) as work:
        found.fit.save(work / "model")
        found.table.to_csv(work / "models.csv", index_label="model")
        weights_table(found.fit, trials.inputs).to_csv(work / "weights.csv", index=False)
        trials_table(found, trials).to_csv(work / "trials.csv", index=False)
        page = render("Strategies behind choices", choice_sections(found, trials))
        (work / "report.html").write_text(page, encoding="utf-8")
        record = {
            "command": "decisions", "ppgen": metadata.version("ppgen"), "states": found.states,
            "inputs": list(trials.inputs), "center": trials.center.tolist(), "spread": trials.spread.tolist(),
            "held_out": list(found.held_out), "random_seed": random_seed,
        }  # fmt: skip
        write_json(work / "run.json", record)
    say(f"report: {out / 'report.html'}")
