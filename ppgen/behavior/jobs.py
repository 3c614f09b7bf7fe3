"""The four jobs of the command line, each from files to a folder of results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ppgen.behavior import study_report
from ppgen.behavior.compare import compare as compare_groups
from ppgen.behavior.files import (
    Labelled,
    check_output,
    labels_of,
    output_folder,
    read_groups,
    read_labels,
    read_run,
    safe_names,
    write_groups,
    write_json,
    write_results,
    write_table,
)
from ppgen.behavior.fitting import Settings, Study, fit_pipeline
from ppgen.behavior.match import match as match_labels
from ppgen.behavior.pipeline import Pipeline, renumbered
from ppgen.behavior.report import Section, render
from ppgen.behavior.segments import median_duration, order_by_use, summary
from ppgen.data.pose import read_poses
from ppgen.data.recording import Recording
from ppgen.data.simulate import simulate_mice, write_deeplabcut_csv
from ppgen.errors import DataError

__all__ = ["Reading", "apply", "compare", "demo", "fit", "match"]

CONFIDENCE = 0.3
"""Threshold where the files have confidences and none is given."""
DRAWS, REPLICATED = 100, 100
"""Posterior draws in ``posterior.nc``, and frames of each of two windows with replicated data."""


@dataclass(frozen=True)
class Reading:
    """How files are read: see :func:`ppgen.data.pose.read_poses`; None is to find out."""

    fps: float | None = None
    min_confidence: float | None = None
    format: str | None = None
    individuals: tuple[str, ...] | None = None

    def read(self, files: Sequence[Path], shortest: int) -> list[Recording]:
        """Read all recordings; of files with several tracks, those that cannot be used are left out, and said.

        A track is of use when it has ``shortest`` frames and shows half of its keypoints at once somewhere.
        """
        if not files:
            raise DataError("files: at least one pose file must be given, got none; or try --demo")
        found: list[Recording] = []
        for path in tqdm(list(files), desc="reading", delay=1):
            tracks = [replace(one, name=_told_apart(one.name, path, files)) for one in self._read_file(path)]
            useful = [one for one in tracks if len(one) >= shortest and _shows(one) >= 0.5] or tracks
            if len(useful) < len(tracks):
                reason = f"fewer than {shortest} frames, or never half of the keypoints at once"
                say(f"{path.name}: left out {len(tracks) - len(useful)} of {len(tracks)} tracks ({reason})")
            found += useful
        names = safe_names([recording.name for recording in found])
        return [replace(one, name=name) for one, name in zip(found, names, strict=True)]

    def _read_file(self, path: Path) -> list[Recording]:
        if self.min_confidence is not None:
            return self._poses(path, self.min_confidence)
        plain = self._poses(path, 0.0)
        if any(one.confidence is None for one in plain):
            return plain
        return self._poses(path, CONFIDENCE)

    def _poses(self, path: Path, min_confidence: float) -> list[Recording]:
        return read_poses(
            path, format=self.format, fps=self.fps, min_confidence=min_confidence, individuals=self.individuals
        )


def say(message: str) -> None:
    """Print a line without breaking a progress bar."""
    tqdm.write(message)


def fit(files: Sequence[Path], out: Path, settings: Settings, reading: Reading, *, overwrite: bool = False) -> None:
    """Fit a pipeline to files and write everything about it into ``out``."""
    check_output(out, overwrite, files)
    recordings = reading.read(files, settings.lags + 1)
    with output_folder(out, overwrite, files) as work:
        known = _known_groups(out)
        labelled = _fit_into(work, recordings, settings, known)
    _farewell(out, labelled)


def demo(out: Path, settings: Settings, *, overwrite: bool = False) -> None:
    """Run ``fit`` on simulated mice and say how well their known syllables were found."""
    check_output(out, overwrite)
    mice, truth = simulate_mice(random_seed=settings.random_seed)
    with output_folder(out, overwrite) as work:
        (work / "input").mkdir()
        paths = [write_deeplabcut_csv(mouse, work / "input" / f"{mouse.name}.csv") for mouse in mice]
        known = {mouse.name: one.syllable for mouse, one in zip(mice, truth, strict=True)}
        for name, syllable in known.items():
            table = pd.DataFrame({"frame": np.arange(len(syllable)), "syllable": syllable})
            table.to_csv(work / "input" / f"{name}.truth.csv", index=False)
        lost = np.mean([mouse.missing for mouse in mice])
        say(f"simulated {len(mice)} mice, {sum(map(len, mice))} frames, {lost:.0%} of keypoints missing")
        recordings = Reading(fps=mice[0].fps).read(paths, settings.lags + 1)
        labelled = _fit_into(work, recordings, settings, {}, known)
        found = match_labels(known, labels_of(labelled))
    say(f"known syllables: {found.agreement:.0%} of frames in the matched syllable, mutual information {found.nmi:.2f}")
    _farewell(out, labelled)


def apply(model: Path, files: Sequence[Path], out: Path, reading: Reading, *, overwrite: bool = False) -> None:
    """Label files with a fitted pipeline."""
    check_output(out, overwrite, files)
    pipeline = Pipeline.load(model)
    recordings = reading.read(files, int(pipeline.settings["lags"]) + 1)
    with output_folder(out, overwrite, files) as work:
        labelled = [pipeline.label(recording) for recording in tqdm(recordings, desc="labelling", delay=1)]
        _write_labels(work, labelled, _known_groups(out))
        chosen = [recording.select(pipeline.settings["keypoints"]) for recording in recordings]
        sections = study_report.label_sections(chosen, labelled, pipeline.align(chosen))
        _write_report(work, "Syllables of recordings, by a fitted model", sections)
        write_json(work / "run.json", _run("apply", pipeline, recordings, labelled))
    _farewell(out, labelled)


def compare(
    folder: Path, groups: Path, out: Path, *, permutations: int = 2000, seed: int = 0, overwrite: bool = False
) -> None:
    """Compare groups of recordings and write tables and a report."""
    if permutations < 1:
        raise DataError(f"compare: permutations must be at least 1, got {permutations}")
    check_output(out, overwrite)
    run, known = read_run(folder), read_groups(groups)
    labels = {name: z for name, z in read_labels(folder).items() if name in known}
    strange = sorted(set(known) - set(labels))
    if strange:
        raise DataError(f"compare: every name in {groups} must be a recording of {folder}, got {strange[0]!r}")
    found = compare_groups(labels, known, run["fps"], permutations=permutations, random_seed=seed)
    with output_folder(out, overwrite) as work:
        tables = {"usage": found.usage, "duration": found.duration, "usage_tests": found.usage_tests,
                  "duration_tests": found.duration_tests, "groups": found.groups}  # fmt: skip
        for name, table in tables.items():
            table.to_csv(work / f"{name}.csv")
        found.pairs.to_csv(work / "pairs.csv", index=False)
        found.transitions.to_csv(work / "transitions.csv", index=False)
        sections = study_report.comparison_sections(found)
        _write_report(work, "Groups of recordings compared", sections)
        write_json(work / "run.json", {"command": "compare", "permutations": permutations, "seed": seed, **_stamp()})
    for line in sections[0].words:
        say(line)
    say(f"report: {out / 'report.html'}")


def match(folder_a: Path, folder_b: Path, out: Path, *, overwrite: bool = False) -> None:
    """Match the syllables of two fits and write tables and a report."""
    check_output(out, overwrite)
    found = match_labels(read_labels(folder_a), read_labels(folder_b))
    with output_folder(out, overwrite) as work:
        found.syllables.to_csv(work / "syllables.csv")
        found.overlap.to_csv(work / "overlap.csv")
        _write_report(work, "Two fits compared", study_report.match_sections(found))
        write_json(work / "run.json", {"command": "match", "agreement": found.agreement, "nmi": found.nmi, **_stamp()})
    say(found.syllables.to_string(float_format="{:.2f}".format))
    say(f"{found.agreement:.1%} of frames lie in matched syllables; normalised mutual information {found.nmi:.3f}")
    say(f"report: {out / 'report.html'}")


def _fit_into(
    work: Path,
    recordings: list[Recording],
    settings: Settings,
    known: Mapping[str, str],
    truth: Mapping[str, np.ndarray] | None = None,
) -> list[Labelled]:
    """Fit, label with the pipeline as read back from disk, number syllables by use, and write all of it."""
    study = fit_pipeline(recordings, settings, say=say)
    study.pipeline.save(work / "model")
    pipeline = Pipeline.load(work / "model")
    raw = [pipeline.label(recording) for recording in tqdm(recordings, desc="labelling", delay=1)]
    order = order_by_use(labels_of(raw), pipeline.states)
    labelled = [renumbered(one, order) for one in raw]
    pipeline = pipeline.numbered(order)
    pipeline.save(work / "model", overwrite=True)
    _write_labels(work, labelled, known)
    say("sampling the posterior")
    _write_posterior(work / "posterior.nc", study)
    say("writing the report")
    chosen = [recording.select(pipeline.settings["keypoints"]) for recording in recordings]
    matched = None if truth is None else match_labels(truth, labels_of(labelled))
    sections = study_report.study_sections(study, chosen, labelled, pipeline.align(chosen), matched)
    _write_report(work, "Behavioural syllables", sections)
    write_json(work / "run.json", _run("fit", pipeline, recordings, labelled) | _search_record(study))
    return labelled


def _write_labels(work: Path, labelled: Sequence[Labelled], known: Mapping[str, str]) -> None:
    (work / "syllables").mkdir()
    for one in tqdm(labelled, desc="writing", delay=1):
        write_table(work / "syllables" / f"{one.name}.csv", one)
    write_results(work / "results.h5", labelled)
    write_groups(work / "index.csv", [one.name for one in labelled], known)
    summary(labels_of(labelled), labelled[0].states, labelled[0].fps).to_csv(work / "syllables.csv")


def _write_posterior(path: Path, study: Study) -> None:
    """The posterior as ArviZ takes it, with replicated data for a few short windows."""
    few = {name: x[:REPLICATED] for name, x in list(study.x.items())[:2]}
    tree = study.pipeline.fit.to_arviz(few, draws=DRAWS, random_seed=0)
    tree.to_netcdf(path, engine="h5netcdf")


def _write_report(work: Path, title: str, sections: Sequence[Section]) -> None:
    (work / "report.html").write_text(render(title, sections), encoding="utf-8")


def _run(
    command: str, pipeline: Pipeline, recordings: Sequence[Recording], labelled: Sequence[Labelled]
) -> dict[str, Any]:
    return {
        "command": command,
        **_stamp(),
        "fps": labelled[0].fps,
        "states": pipeline.states,
        "median_duration": median_duration(labels_of(labelled), labelled[0].fps),
        "settings": dict(pipeline.settings),
        "recordings": {r.name: {"source": r.source, "frames": len(r), "missing": r.missing} for r in recordings},
    }


def _search_record(study: Study) -> dict[str, Any]:
    fit = study.pipeline.fit
    return {
        "target_reached": study.search.reached,
        "search": study.search.trail.to_dict("records"),
        "converged": bool(fit.attrs.get("converged")),
        "steps": len(fit.history),
        "notes": study.notes,
    }


def _stamp() -> dict[str, str]:
    return {"ppgen": metadata.version("ppgen")}


def _farewell(out: Path, labelled: Sequence[Labelled]) -> None:
    labels = labels_of(labelled)
    used = len(set(np.concatenate(list(labels.values())).tolist()) - {-1})
    say(f"{used} syllables used; the median lasts {median_duration(labels, labelled[0].fps):.2f} s")
    say(f"report: {out / 'report.html'}")


def _told_apart(name: str, path: Path, files: Sequence[Path]) -> str:
    """The name of a recording, with that of its folder in front where another file is called the same."""
    same = [other for other in files if other.stem == path.stem]
    return name if len(same) == 1 else f"{path.resolve().parent.name}_{name}"


def _shows(recording: Recording) -> float:
    """The largest share of the keypoints that is seen at once."""
    return float(np.isfinite(recording.positions).all(axis=-1).mean(axis=1).max())


def _known_groups(out: Path) -> dict[str, str]:
    """Groups that somebody wrote into the index of an earlier run in the same place."""
    index = out / "index.csv"
    return read_groups(index) if index.is_file() else {}
