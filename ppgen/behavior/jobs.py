"""The four jobs of the command line, each from files to a folder of results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
    copies,
    labels_of,
    read_groups,
    read_labels,
    read_run,
    write_groups,
    write_json,
    write_results,
    write_table,
)
from ppgen.behavior.fitting import Settings, Study, fit_pipeline
from ppgen.behavior.folders import check_output, output_folder
from ppgen.behavior.match import match as match_labels
from ppgen.behavior.numbering import posterior_tree
from ppgen.behavior.pipeline import Pipeline
from ppgen.behavior.reading import Reading, say
from ppgen.behavior.report import Section, render
from ppgen.behavior.segments import median_duration, order_by_use, summary
from ppgen.errors import DataError
from ppgen.pose.recording import Recording
from ppgen.pose.simulate import simulate_mice, write_deeplabcut_csv

__all__ = ["Reading", "apply", "compare", "demo", "fit", "match"]

SAVED_DRAWS, RENUMBERINGS = 100, 3  # posterior draws in ``posterior.nc``; most times that syllables are numbered anew


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
        missing = np.mean([mouse.missing for mouse in mice])
        say(f"simulated {len(mice)} mice, {sum(map(len, mice))} frames, {missing:.0%} of keypoints missing")
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
    everything = read_labels(folder)
    _check_groups(folder, groups, known, everything)
    labels = {name: z for name, z in everything.items() if name in known}
    left_out = [name for name in everything if name not in known]
    found = compare_groups(labels, known, run["fps"], permutations=permutations, random_seed=seed)
    with output_folder(out, overwrite) as work:
        tables = {"usage": found.usage, "duration": found.duration, "usage_tests": found.usage_tests,
                  "duration_tests": found.duration_tests, "groups": found.groups}  # fmt: skip
        for name, table in tables.items():
            table.to_csv(work / f"{name}.csv")
        found.pairs.to_csv(work / "pairs.csv", index=False)
        found.transitions.to_csv(work / "transitions.csv", index=False)
        sections = study_report.comparison_sections(found, left_out)
        _write_report(work, "Groups of recordings compared", sections)
        write_json(
            work / "run.json",
            {"command": "compare", "permutations": permutations, "seed": seed, "left_out": left_out, **_stamp()},
        )
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
    pipeline, labelled = _numbered_by_use(work / "model", study.pipeline, recordings)
    study = replace(study, pipeline=pipeline)
    _write_labels(work, labelled, known)
    say("sampling the posterior")
    table = summary(labels_of(labelled), pipeline.states, labelled[0].fps)
    tree = posterior_tree(pipeline.fit, table.index.to_list(), SAVED_DRAWS, random_seed=0)
    tree.to_netcdf(work / "posterior.nc", engine="h5netcdf")
    say("writing the report")
    chosen = [recording.select(pipeline.settings["keypoints"]) for recording in recordings]
    matched = None if truth is None else match_labels(truth, labels_of(labelled))
    sections = study_report.study_sections(study, chosen, labelled, pipeline.align(chosen), matched)
    _write_report(work, "Behavioural syllables", sections)
    write_json(work / "run.json", _run("fit", pipeline, recordings, labelled) | _search_record(study))
    return labelled


def _numbered_by_use(
    folder: Path, pipeline: Pipeline, recordings: Sequence[Recording]
) -> tuple[Pipeline, list[Labelled]]:
    """The pipeline with its states numbered by use, saved and read back, and the labels that it gives.

    Numbering the states anew may change a label where two syllables are equally probable, and so the order of use.
    """
    for last in (*[False] * RENUMBERINGS, True):
        pipeline.save(folder, overwrite=True)
        pipeline = Pipeline.load(folder)
        labelled = [pipeline.label(recording) for recording in tqdm(recordings, desc="labelling", delay=1)]
        order = order_by_use(labels_of(labelled), pipeline.states)
        if last or (np.diff(order) == 1).all():
            break
        pipeline = pipeline.numbered(order)
    return pipeline, labelled


def _write_labels(work: Path, labelled: Sequence[Labelled], known: Mapping[str, str]) -> None:
    (work / "syllables").mkdir()
    for one in tqdm(labelled, desc="writing", delay=1):
        write_table(work / "syllables" / f"{one.name}.csv", one)
    write_results(work / "results.h5", labelled)
    write_groups(work / "index.csv", [one.name for one in labelled], known)
    summary(labels_of(labelled), labelled[0].states, labelled[0].fps).to_csv(work / "syllables.csv")


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


def _check_groups(folder: Path, groups: Path, known: Mapping[str, str], recordings: Iterable[str]) -> None:
    """Refuse groups of recordings that are not there, and recordings that are copies of each other."""
    strange = sorted(set(known) - set(recordings))
    if strange:
        shortened = any(name.lstrip("0") == strange[0].lstrip("0") for name in recordings)
        hint = "; a spreadsheet has dropped leading zeros, write them again" if shortened else ""
        raise DataError(f"compare: every name in {groups} must be a recording of {folder}, got {strange[0]!r}{hint}")
    same = copies(folder, known)
    if same:
        one, other = same[0]
        raise DataError(
            f"compare: every recording must be an animal or a day of its own, {other!r} is a copy of {one!r}; "
            f"take one of them out of {groups}"
        )


def _known_groups(out: Path) -> dict[str, str]:
    """Groups that somebody wrote into the index of an earlier run in the same place."""
    index = out / "index.csv"
    return read_groups(index) if index.is_file() else {}
