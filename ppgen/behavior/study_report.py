"""The reports of the syllable tools: which figures and which words."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ppgen import plots
from ppgen.behavior.compare import Comparison
from ppgen.behavior.files import Labelled, labels_of
from ppgen.behavior.fitting import Study, out_of_reach
from ppgen.behavior.match import Match
from ppgen.behavior.pipeline import observations
from ppgen.behavior.report import Section
from ppgen.behavior.segments import instances, median_duration, summary, transition_counts, transition_shares, usage
from ppgen.behavior.summaries import as_dataset, mean_bodies
from ppgen.behavior.trust import FEW, simulate, trust
from ppgen.diagnostics.verdict import Report
from ppgen.plots.style import apart
from ppgen.pose.alignment import Aligned
from ppgen.pose.pose import missing_report
from ppgen.pose.recording import Recording

__all__ = ["comparison_sections", "label_sections", "match_sections", "study_sections"]

SHOWN = 12  # syllables whose motion is drawn
LEVEL = 0.05  # share of false discoveries at which groups are said to differ
COMMON = 0.005  # share of the time below which a syllable is too rare for the transition graph
# Frames of each recording, of the first three, that are compared with simulated data, and how many simulations.
CHECKED, SIMULATIONS = 1_000, 20


@apart()
def study_sections(
    study: Study, recordings: Sequence[Recording], labelled: Sequence[Labelled], aligned: Aligned, truth: Match | None
) -> list[Section]:
    """The report of a fit: in short, whether to trust it, what the animals did, and how it came about."""
    target = float(study.pipeline.settings["target_duration"])
    table = summary(labels_of(labelled), labelled[0].states, labelled[0].fps)
    checked = {name: x[:CHECKED] for name, x in list(observations(aligned).items())[:3]}
    replicas, gone = simulate(study, table, checked, aligned.template.shape.shape[-1], SIMULATIONS)
    return [
        _overview(study, recordings, labelled),
        _trust_section(trust(study, table, replicas, gone)),
        *([_truth_section(truth)] if truth is not None else []),
        *label_sections(recordings, labelled, aligned, target),
        _check_section(replicas, gone),
        *_course_sections(study, target),
        _guide(),
    ]


@apart()
def label_sections(
    recordings: Sequence[Recording], labelled: Sequence[Labelled], aligned: Aligned, target: float | None = None
) -> list[Section]:
    """Describe what the animals did: ethogram, motions, usage, durations, transitions, and what was not seen."""
    labels, first = labels_of(labelled), labelled[0]
    table = summary(labels, first.states, first.fps)
    used, rows = table.index.to_list(), instances(labels, first.fps)
    scales = {one.name: one.scale for one in aligned.recordings}
    seconds = 2 * float(rows["duration"].median())
    bodies = mean_bodies(recordings, labelled, scales, syllables=used[:SHOWN], seconds=seconds)
    counts = np.sum([transition_counts(z, first.states) for z in labels.values()], axis=0)
    common = table.index[table["usage"] >= COMMON]
    graph = pd.DataFrame(transition_shares(counts)).loc[common, common]
    return [
        Section(
            "What happened when",
            [f"The first seconds of {first.name}. A row is a syllable; the darker, the more probable it is."],
            [plots.ethogram(as_dataset(first), start=_begin(first))],
        ),
        Section(
            "What each syllable looks like",
            ["The mean body as each syllable begins (light) and later (dark), seen from above, at first facing right."],
            [plots.trajectories(bodies)],
        ),
        Section(
            "How much of each",
            ["Share of the time in each syllable; dots are recordings. Durations are in seconds."],
            [plots.usage(usage(labels, first.states)[used])],
            [table.rename(columns=lambda name: name.replace("_", " "))],
        ),
        Section("How long they last", figures=[plots.durations(rows, target=target)]),
        Section(
            "What follows what",
            [
                "Arrows lead to the three likeliest successors of each syllable; the thicker, the likelier. "
                f"Syllables used for less than {COMMON:.1%} of the time are left out."
            ],
            [plots.transition_graph(graph, table.loc[common, "usage"])],
        ),
        _missing_section(recordings),
    ]


@apart()
def comparison_sections(found: Comparison, left_out: Sequence[str] = ()) -> list[Section]:
    """Groups side by side, with what differs said in words, and which recordings were ``left_out``."""
    steps = found.transitions["p_adjusted"] < 0.05
    sizes = ", ".join(f"{name} ({size})" for name, size in found.groups.value_counts().sort_index().items())
    words = [
        f"Groups and their recordings: {sizes}. The recording is the unit of every test.",
        *_left_out(left_out, len(found.groups)),
        _differ("usage", found.usage_tests) + _reach(found.smallest["usage"], found.usage_tests),
        _differ("duration", found.duration_tests) + _reach(found.smallest["duration"], found.duration_tests),
        f"Differing transitions: {steps.sum()} of {len(steps)} (permutations, false discoveries held at 5 %)."
        + _reach(found.smallest["transitions"], found.transitions),
    ]
    figure = plots.group_usage(found.usage[found.usage_tests.index], found.groups, found.usage_tests)
    stars = "* p < .05, ** p < .01, *** p < .001 after adjustment (Kruskal-Wallis)."
    return [
        Section("Do the groups differ?", words),
        Section("Usage", [stars], [figure], [found.usage_tests]),
        Section("Duration (s)", tables=[found.duration_tests]),
        _table_section(
            "Pairs of groups that differ (Dunn)", found.pairs[found.pairs["p_adjusted"] < 0.05], "No pair differs."
        ),
        _table_section("Transitions that differ most", found.transitions.head(20), "There are no transitions to test."),
    ]


@apart()
def match_sections(found: Match) -> list[Section]:
    """Two fits side by side."""
    words = (
        f"{found.agreement:.0%} of the frames lie in matched syllables, over {_recordings(len(found.recordings))}; "
        f"normalised mutual information {found.nmi:.2f} (1 is perfect)."
    )
    return [Section("How far two fits agree", [words], [plots.agreement(found.overlap)], [found.syllables])]


def _overview(study: Study, recordings: Sequence[Recording], labelled: Sequence[Labelled]) -> Section:
    labels, fps = labels_of(labelled), labelled[0].fps
    shares = summary(labels, labelled[0].states, fps)["usage"]
    many, frames = int((shares.cumsum() < 0.95).sum()) + 1, sum(map(len, recordings))
    sure = np.nanmean(np.concatenate([one.probability for one in labelled]))
    words = [
        f"{_recordings(len(recordings))}, {frames:,} frames, {_time(frames / fps)} at {fps:g} frames a second.",
        f"{len(shares)} syllables are used, {many} of them for 95 % of the time. The median instance lasts "
        f"{median_duration(labels, fps):.2f} s. A frame's own syllable has probability {sure:.2f} on average.",
        *study.notes,
    ]
    return Section("In short", words)


def _trust_section(report: Report) -> Section:
    words = "Every check that could be made was passed."
    if not report.ok:
        words = "Each failed check below says what to do. Labels may still be useful, but rest no claim on them alone."
    checks = report.table.assign(
        ok=np.where(report.table["ok"], "passed", "failed"),
        advice=report.table["advice"].where(~report.table["ok"], ""),
    )
    return Section("Can the fit be trusted?", [words], tables=[checks], verdict=(report.verdict, report.ok))


def _truth_section(found: Match) -> Section:
    words = (
        f"{found.agreement:.0%} of the frames lie in the syllable matched to the true one; "
        f"normalised mutual information {found.nmi:.2f} (1 is perfect)."
    )
    figure = plots.agreement(found.overlap, names=("true", "found"))
    return Section("Were the known syllables found?", [words], [figure], [found.syllables])


def _check_section(replicas: pd.DataFrame, gone: Sequence[bool]) -> Section:
    words = [
        "Thick: your recordings. Thin: data that the fitted model simulated. Where the lines part, the model misses "
        "something about how these animals move; syllables can still be useful labels.",
        f"Simulated animals move between the syllables seen {FEW} times or more. {sum(gone)} of {len(gone)} simulated "
        "sets ran away to where no body is.",
    ]
    return Section("Does the model make data like yours?", words, [plots.predictive_check(replicas)])


def _course_sections(study: Study, target: float) -> list[Section]:
    """The bound, and the search for a stickiness, which ends with the value that was kept."""
    history, search = study.pipeline.fit.history, study.search
    kept = history[history["kept"]] if "kept" in history else history
    last = pd.DataFrame([{"stickiness": search.stickiness, "median": search.median}])
    words = (
        f"The median syllable lasts {search.median:.2f} s at stickiness {search.stickiness:.3g} (target {target:g})."
    )
    if not search.reached:
        words += " That is more than a tenth off: " + out_of_reach(search, target)
    trail = pd.concat([search.trail, last], ignore_index=True)
    return [
        Section("Did the fit settle?", ["The bound must level off."], [plots.elbo(kept)]),
        Section("How the stickiness was chosen", [words], [plots.stickiness_search(trail, target=target)]),
    ]


def _missing_section(recordings: Sequence[Recording]) -> Section:
    report = missing_report(recordings)
    shares = report["share_missing"].unstack("keypoint")
    shares = shares.loc[[r.name for r in recordings], list(recordings[0].keypoints)]
    gaps = report["longest_gap_seconds"]
    name, keypoint = gaps.idxmax()
    words = [
        f"{shares.mean(axis=None):.1%} of the keypoints were not seen; the longest gap is {gaps.max():.1f} s "
        f"({keypoint} in {name}). They stay missing: the model fills them in, with its uncertainty."
    ]
    words += [f"{r.name}: {note}." for r in recordings for note in r.notes]
    return Section("What was not seen", words, [plots.missing(shares)])


def _guide() -> Section:
    words = [
        "syllables/: a table per recording with frame, time in seconds, syllable, its probability, centroid, heading "
        "in radians and latent coordinates. The syllables are the most probable path through the recording, and the "
        "probability is that of the frame's own label. Syllable 0 is used most; -1 marks frames after the last one in "
        "which anything was seen.",
        "results.h5: the same with the probabilities of all syllables. syllables.csv: one row per syllable. "
        "posterior.nc: what is known of the model's parameters, by the same numbers of syllables, for ArviZ. model/: "
        "label new recordings with it by the command apply, or open it with ppgen.load.",
        "index.csv: write the group of each recording into it, then use the command compare.",
    ]
    return Section("The files beside this report", words)


def _left_out(names: Sequence[str], compared: int) -> list[str]:
    """Recordings that the groups file does not name are no error, but nobody should have to count them."""
    if not names:
        return []
    return [
        f"Left out, for they have no group: {', '.join(names)} ({len(names)} of {_recordings(len(names) + compared)})."
    ]


def _table_section(title: str, table: pd.DataFrame, nothing: str) -> Section:
    return Section(title, [nothing]) if table.empty else Section(title, tables=[table])


def _recordings(number: int) -> str:
    return "1 recording" if number == 1 else f"{number} recordings"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _differ(what: str, tests: pd.DataFrame) -> str:
    names = [str(k) for k in tests.index[tests["p_adjusted"] < 0.05]]
    found = f"syllables {', '.join(names)}" if names else "no syllable"
    return f"Differing {what}: {found} of {len(tests)} (Kruskal-Wallis, false discoveries held at 5 %)."


def _reach(smallest: float, tests: pd.DataFrame) -> str:
    """Say what so few recordings cannot show, whatever the animals do; empty if they can show a single difference."""
    many = int(tests["p"].notna().sum())
    if not many or not smallest * many > LEVEL:
        return ""
    words = f" With so few recordings the smallest p possible is {smallest:.2g} before adjustment, so "
    if smallest > LEVEL:
        return words + "no difference could have been found: give more recordings."
    together = math.ceil(smallest * many / LEVEL)
    return words + f"among {many} tests no fewer than {together} differences at once could have been found."


def _begin(labelled: Labelled) -> float:
    """When the first frame with a syllable comes, in seconds."""
    return float(labelled.frame[int(np.argmax(labelled.syllable >= 0))] / labelled.fps)
