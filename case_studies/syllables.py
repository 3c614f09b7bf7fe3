"""Behavioural syllables from pose files.

Typical use:

    python case_studies/syllables.py fit videos/*.h5 --fps 30 --out results
    python case_studies/syllables.py apply results later/*.h5 --fps 30 --out later-results
    python case_studies/syllables.py compare results --groups results/index.csv
    python case_studies/syllables.py match results other-results
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

# Threads that wait for each other by spinning are many times slower than one thread on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = App(
    name="syllables",
    help=__doc__,
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

Files = Annotated[list[Path], Parameter(help="Pose files: DeepLabCut, SLEAP, LightningPose, Anipose, npz, netCDF.")]
Out = Annotated[Path, Parameter(help="Folder for the results; it must be new or empty.")]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace the results of an earlier run in that folder.")]
Fps = Annotated[float | None, Parameter(help="Frames per second, where the files do not say.")]
Format = Annotated[str | None, Parameter(help="Format of the files, where their content does not tell.")]
Individuals = Annotated[
    list[str] | None,
    Parameter(negative=(), help="Beginning of the keypoints of one animal, where names tell animals apart; repeat."),
]
Confidence = Annotated[
    float | None,
    Parameter(help="Keypoints seen with less confidence count as not seen (0.3 where the files have confidences)."),
]


@app.command
def fit(
    files: Files | None = None,
    /,
    *,
    out: Out,
    fps: Fps = None,
    target_duration: Annotated[float, Parameter(help="Wished median duration of a syllable, in seconds.")] = 0.4,
    states: Annotated[int, Parameter(help="The most syllables there can be; those not needed stay empty.")] = 50,
    lags: Annotated[int, Parameter(help="Frames that the model looks back.")] = 3,
    min_confidence: Confidence = None,
    variance: Annotated[float, Parameter(help="Share of the pose variance to keep.")] = 0.9,
    components: Annotated[int | None, Parameter(help="Pose components to keep, instead of a share.")] = None,
    anterior: Annotated[str | None, Parameter(help="Keypoint at the front of the body.")] = None,
    posterior: Annotated[str | None, Parameter(help="Keypoint at the back of the body.")] = None,
    leave_out: Annotated[list[str] | None, Parameter(negative=(), help="Keypoint not to use; may be repeated.")] = None,
    n_init: Annotated[int, Parameter(help="Starts of the model; the best is kept.")] = 2,
    max_steps: Annotated[int, Parameter(help="Most steps of the last fit.")] = 300,
    seed: Annotated[int, Parameter(help="Seed of all randomness: the same seed gives the same syllables.")] = 0,
    format: Format = None,  # noqa: A002 (the word that readers of files use)
    individuals: Individuals = None,
    demo: Annotated[bool, Parameter(negative=(), help="Run on simulated mice, whose syllables are known.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Find syllables in recordings.

    Reads the files, aligns the bodies, chooses how sticky syllables must be for the median one to last the target
    duration, fits, and writes into OUT: syllables/RECORDING.csv (frame, time in seconds, syllable, probability,
    centroid, heading, latent coordinates), results.h5, posterior.nc, model/, syllables.csv, index.csv and report.html.
    Open report.html first. Keypoints that were not seen stay missing; nothing is interpolated. The syllables of a
    recording are its most probable path; the probability is that of the frame's own label, and low where it is unsure.
    """
    from ppgen.behavior import jobs
    from ppgen.behavior.fitting import Settings

    settings = Settings(
        target_duration=target_duration, states=states, lags=lags, variance=variance, components=components,
        n_init=n_init, max_steps=max_steps, random_seed=seed, anterior=anterior, posterior=posterior,
        leave_out=tuple(leave_out or ()),
    )  # fmt: skip
    reading = jobs.Reading(fps, min_confidence, format, tuple(individuals) if individuals else None)
    if demo:
        jobs.demo(out, settings, overwrite=overwrite)
    else:
        jobs.fit(files or [], out, settings, reading, overwrite=overwrite)


@app.command
def apply(
    model: Annotated[Path, Parameter(help="Folder that fit wrote, or the folder model/ inside it.")],
    files: Files,
    /,
    *,
    out: Out,
    fps: Fps = None,
    min_confidence: Confidence = None,
    format: Format = None,  # noqa: A002 (as above)
    individuals: Individuals = None,
    overwrite: Overwrite = False,
) -> None:
    """Label recordings with a fitted model.

    Syllables keep their numbers and meaning. Applied to the files of the fit, the labels are those of the fit exactly.
    """
    from ppgen.behavior import jobs

    reading = jobs.Reading(fps, min_confidence, format, tuple(individuals) if individuals else None)
    jobs.apply(model, files, out, reading, overwrite=overwrite)


@app.command
def compare(
    folder: Annotated[Path, Parameter(help="Folder that fit or apply wrote.")],
    /,
    *,
    groups: Annotated[Path, Parameter(help="CSV with the columns name and group; start from index.csv.")],
    out: Annotated[Path | None, Parameter(help="Folder for the tables; FOLDER/compare when not given.")] = None,
    permutations: Annotated[int, Parameter(help="Shuffles behind each p-value of a transition.")] = 2000,
    seed: Annotated[int, Parameter(help="Seed of the shuffles.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Compare groups of recordings.

    Usage and duration of each syllable (Kruskal-Wallis, then Dunn's test for each pair of groups) and what follows
    what (permutation test). The recording is the unit; p-values are adjusted for the number of tests.
    """
    from ppgen.behavior import jobs

    jobs.compare(folder, groups, out or folder / "compare", permutations=permutations, seed=seed, overwrite=overwrite)


@app.command
def match(
    folder_a: Annotated[Path, Parameter(help="Folder that fit or apply wrote.")],
    folder_b: Annotated[Path, Parameter(help="Another one, of the same recordings.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for the tables; FOLDER_A/match when not given.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Say how stable syllables are between two fits: which is which, and how far they agree."""
    from ppgen.behavior import jobs

    jobs.match(folder_a, folder_b, out or folder_a / "match", overwrite=overwrite)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 2 with one message when not, 130 when interrupted."""
    from ppgen.behavior.command import run

    return run(app, "syllables", arguments, "give fewer recordings at a time, or fewer states")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as after Ctrl-C
    sys.exit(main())
