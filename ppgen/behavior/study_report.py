"""The reports of the syllable tools: which figures and which words."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ppgen import plots
from ppgen.behavior.compare import Comparison
from ppgen.behavior.files import Labelled
from ppgen.behavior.fitting import Study
from ppgen.behavior.match import Match
from ppgen.behavior.pipeline import observations
from ppgen.behavior.report import Section
from ppgen.behavior.segments import instances, summary, transition_counts, transition_shares, usage
from ppgen.behavior.summaries import as_dataset, mean_bodies, replicates
from ppgen.data.alignment import Aligned
from ppgen.data.pose import missing_report
from ppgen.data.recording import Recording

__all__ = ["comparison_sections", "fit_sections", "label_sections", "match_sections", "truth_section"]

SHOWN = 12
"""Syllables whose motion is drawn."""
CHECKED = 1_000
"""Frames of each recording, of the first three, that are compared with simulated data."""


def label_sections(
    recordings: Sequence[Recording], labelled: Sequence[Labelled], aligned: Aligned, target: float | None = None
) -> list[Section]:
    """What the animals did: ethogram, motions, usage, durations, transitions, and what was not seen."""
    fps, states = labelled[0].fps, labelled[0].probabilities.shape[1]
    labels = {one.name: one.syllable for one in labelled}
    table = summary(labels, states, fps)
    used = table.index.to_list()
    shares, rows = usage(labels, states), instances(labels, fps)
    scales = {name: float(scale) for name, scale in aligned.scale.items()}
    bodies = mean_bodies(
        recordings, labelled, scales, syllables=used[:SHOWN], seconds=2 * float(rows["duration"].median())
    )
    follows = transition_shares(sum(transition_counts(z, states) for z in labels.values()))
    graph = pd.DataFrame(follows).loc[used, used]
    first = labelled[0]
    return [
        Section(
            "What happened when",
            [f"The first seconds of {first.name}. A row is a syllable; the darker, the more probable it is."],
            [plots.ethogram(as_dataset(first), start=_busy(first))],
        ),
        Section(
            "What each syllable looks like",
            [
                "The mean body at the start of each syllable (light) and later (dark), seen from above, nose to the right."
            ],
            [plots.trajectories(bodies)],
        ),
        Section(
            "How much of each",
            ["Share of the time in each syllable; dots are recordings."],
            [plots.usage(shares[used])],
            [table.rename(columns=lambda name: name.replace("_", " "))],
        ),
        Section("How long they last", ["In seconds."], [plots.durations(rows, target=target)]),
        Section(
            "What follows what",
            ["Arrows lead to the three likeliest successors of each syllable; the thicker, the likelier."],
            [plots.transition_graph(graph, table["usage"])],
        ),
        _missing_section(recordings),
    ]


def fit_sections(study: Study, aligned: Aligned) -> list[Section]:
    """Whether the fit can be trusted: verdict, replicated data, the bound, the search for a stickiness."""
    fit, settings = study.pipeline.fit, study.pipeline.settings
    report = fit.diagnose()
    axes = next(iter(aligned.pose.values())).shape[-1]
    checked = {name: x[:CHECKED] for name, x in list(observations(aligned).items())[:3]}
    reached = (
        ""
        if study.search.reached
        else " This is more than a tenth away from the target: no stickiness tried came closer."
    )
    kept = fit.history[fit.history["kept"]] if "kept" in fit.history else fit.history
    return [
        Section(
            "Can the fit be trusted?",
            [_advice(report.ok)],
            tables=[report.table],
            verdict=(str(report.verdict), report.ok),
        ),
        Section(
            "Does the model make data like yours?",
            [
                "Thick: your recordings. Thin: data that the fitted model simulated. Where the lines part, the model misses "
                "something about how these animals move; syllables can still be useful labels."
            ],
            [plots.predictive_check(replicates(fit, checked, axes, float(settings["fps"])))],
        ),
        Section("Did the fit settle?", ["The bound must level off."], [plots.elbo(kept)]),
        Section(
            "How the stickiness was chosen",
            [
                f"The median syllable lasts {study.search.median:.2f} s at stickiness {study.search.stickiness:.3g}; the target "
                f"was {settings['target_duration']:g} s.{reached}"
            ],
            [plots.stickiness_search(_chosen_last(study), target=float(settings["target_duration"]))],
        ),
    ]


def truth_section(found: Match) -> Section:
    """How well known syllables were recovered."""
    words = (
        f"{found.agreement:.0%} of the frames lie in the syllable matched to the true one; normalised mutual information "
        f"{found.nmi:.2f} (1 is perfect)."
    )
    return Section("Were the known syllables found?", [words], [plots.agreement(found.overlap)], [found.syllables])


def comparison_sections(found: Comparison) -> list[Section]:
    """Groups side by side, with what differs said in words."""
    steps = found.transitions[found.transitions["p_adjusted"] < 0.05]
    sizes = ", ".join(f"{name} ({size})" for name, size in found.groups.value_counts().sort_index().items())
    tested = found.usage_tests.index
    words = [
        f"Groups and their recordings: {sizes}. The recording is the unit of every test.",
        _differ("usage", found.usage_tests),
        _differ("duration", found.duration_tests),
        f"{len(steps)} of {len(found.transitions)} transitions differ (permutation test, false discoveries held at 5 %).",
    ]
    return [
        Section("Do the groups differ?", words),
        Section(
            "Usage", ["* p < .05, ** p < .01, *** p < .001 after adjustment (Kruskal-Wallis)."],
            [plots.group_usage(found.usage[tested], found.groups, found.usage_tests)], [found.usage_tests],
        ),
        Section("Duration (s)", tables=[found.duration_tests]),
        Section("Pairs of groups (Dunn)", tables=[found.pairs[found.pairs["p_adjusted"] < 0.05]]),
        Section("Transitions that differ most", tables=[found.transitions.head(20)]),
    ]  # fmt: skip


def match_sections(found: Match) -> list[Section]:
    """Two fits side by side."""
    words = (
        f"{found.agreement:.0%} of the frames lie in matched syllables, over {len(found.recordings)} recordings; normalised "
        f"mutual information {found.nmi:.2f}."
    )
    return [Section("How far two fits agree", [words], [plots.agreement(found.overlap)], [found.syllables])]


def _missing_section(recordings: Sequence[Recording]) -> Section:
    report = missing_report(recordings)
    shares = (
        report["share_missing"].unstack("keypoint").loc[[r.name for r in recordings], list(recordings[0].keypoints)]
    )
    gap = report["longest_gap_seconds"].idxmax()
    words = [
        f"{np.mean([r.missing for r in recordings]):.1%} of the keypoints were not seen; the longest gap is "
        f"{report['longest_gap_seconds'].max():.1f} s ({gap[1]} in {gap[0]}). They stay missing: the model fills them in with "
        "its uncertainty, nothing is interpolated."
    ]
    words += [f"{r.name}: {note}." for r in recordings for note in r.notes]
    return Section("What was not seen", words, [plots.missing(shares)])


def _advice(good: bool) -> str:
    if good:
        return "Every check that could be made was passed."
    return "Read the failed checks below; each says what to do. Labels may still be useful, but do not rest a claim on them alone."


def _chosen_last(study: Study) -> pd.DataFrame:
    trail = study.search.trail
    return pd.concat([trail, pd.DataFrame([{"stickiness": study.search.stickiness, "median": study.search.median}])])


def _differ(what: str, tests: pd.DataFrame) -> str:
    names = [str(k) for k in tests.index[tests["p_adjusted"] < 0.05]]
    found = f"syllables {', '.join(names)}" if names else "no syllable"
    return f"Differing {what}: {found} of {len(tests)} (Kruskal-Wallis, false discoveries held at 5 %)."


def _busy(labelled: Labelled) -> float:
    """When the first frame with a syllable comes, in seconds."""
    return float(labelled.frame[int(np.argmax(labelled.syllable >= 0))] / labelled.fps)
