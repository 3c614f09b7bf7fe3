"""Fit a pipeline to recordings: align bodies, find a subspace, choose a stickiness, fit a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch

from ppgen.behavior.pipeline import Pipeline, observations
from ppgen.behavior.segments import median_duration
from ppgen.behavior.stickiness import Search, choose_stickiness
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.subspace import Subspace
from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.inference import vb
from ppgen.models.hmm import HMM
from ppgen.pose.alignment import align
from ppgen.pose.pca import PrincipalComponents, fit_pca
from ppgen.pose.recording import Recording
from ppgen.results.fit import Fit
from ppgen.results.posterior import Factors
from ppgen.results.reading import read

__all__ = ["Settings", "Study", "fit_pipeline", "out_of_reach", "windows"]

WINDOW = 2_000  # frames per window: long recordings are cut so that windows are about equal and run side by side
WHOLE, BATCH = 200_000, 64_000  # frames up to which each step sees all the data, and frames per step beyond that
SEARCH = 60_000  # frames that the search for a stickiness looks at
SEARCH_STEPS, FIRST_STEPS = 12, 30

Windows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Options of a fit.

    Attributes
    ----------
    target_duration : wished median duration of a syllable, in seconds.
    states : the largest number of syllables; those not needed stay empty.
    lags : frames that the autoregression looks back.
    variance, components : share of the pose variance that the subspace keeps, or its width, which then decides.
    n_init : starts of the model; the best evidence bound is kept.
    max_steps, tol : end of the last fit: so many steps, or a smaller relative change of the bound.
    random_seed : seed of everything random.
    anterior, posterior : keypoints at the front and the back of the body; found from names or from the motion when
        None.
    leave_out : keypoints not to use.
    """

    target_duration: float = 0.4
    states: int = 50
    lags: int = 3
    variance: float = 0.9
    components: int | None = None
    n_init: int = 2
    max_steps: int = 300
    tol: float = 1e-5
    random_seed: int = 0
    anterior: str | None = None
    posterior: str | None = None
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """A fitted pipeline and what led to it.

    Attributes
    ----------
    pipeline : labels recordings; its syllables are not ordered by use where it comes from :func:`fit_pipeline`.
    search : the search for a stickiness: ``trail`` has the durations in seconds.
    x : the windows of data that the model was fitted to.
    notes : remarks that a person should read, in words.
    starts : the bound that each start reached in the first brief fit of the search, in nats; the best was continued.
    """

    pipeline: Pipeline
    search: Search[Fit]
    x: Windows
    notes: list[str]
    starts: list[float]


def fit_pipeline(
    recordings: Sequence[Recording], settings: Settings, *, say: Callable[[str], None] = print, progressbar: bool = True
) -> Study:
    """Fit the whole pipeline to recordings.

    Parameters
    ----------
    recordings : with the same keypoints and frame rate; more frames than lags each.
    settings : options.
    say : told, in words, what happens.
    progressbar : of the steps of a fit.

    Raises
    ------
    DataError : recordings that cannot be fitted together, or options that do not fit them.
    """
    kept = _usable(recordings, settings.leave_out)
    fps = _check(kept, settings)
    aligned = align(kept, anterior=settings.anterior, posterior=settings.posterior)
    bodies = observations(aligned)
    pca = fit_pca(np.concatenate(list(bodies.values())), settings.components, variance=settings.variance)
    width = len(pca.scale)
    say(f"{width} components keep {pca.explained[:width].sum():.0%} of the variance of {len(pca.mean)} coordinates")
    x = windows(bodies, WINDOW, settings.lags)
    search, starts = _search(x, pca, settings, fps, say, progressbar)
    found = {"fps": fps, "keypoints": list(kept[0].keypoints), "width": width, "stickiness": search.stickiness}
    pipeline = Pipeline(search.state, aligned.template, np.arange(settings.states), asdict(settings) | found)
    return Study(pipeline, search, x, [_sentence(note) for note in aligned.notes], starts)


def windows(bodies: Mapping[str, np.ndarray], length: int, lags: int) -> Windows:
    """Cut recordings (T, F) into equal windows of at most ``length`` frames; those never observed are left out."""
    cut: Windows = {}
    for name, x in bodies.items():
        edges = np.linspace(0, len(x), math.ceil(len(x) / length) + 1).astype(int)
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            seen = np.flatnonzero(np.isfinite(x[start:stop]).any(axis=1))
            if len(seen) and seen[-1] >= lags:
                cut[name if len(edges) == 2 else f"{name} [{start}:{stop}]"] = x[start:stop]
    if not cut:
        raise DataError(f"fit: some recording must have keypoints seen in more than {lags} frames (the lags), got none")
    return cut


def _usable(recordings: Sequence[Recording], leave_out: Sequence[str]) -> list[Recording]:
    """The recordings with the keypoints to fit, after refusing sets that differ and keypoints never seen."""
    names = recordings[0].keypoints
    for recording in recordings[1:]:
        if set(recording.keypoints) != set(names):
            odd = sorted(set(names) ^ set(recording.keypoints))
            raise DataError(
                f"fit: all recordings must have the same keypoints, {recordings[0].name!r} and {recording.name!r} "
                f"differ in {', '.join(odd[:4])}; fit them apart or rename the keypoints"
            )
    strange = sorted(set(leave_out) - set(names))
    if strange:
        raise DataError(f"fit: keypoints to leave out must be among {', '.join(names)}, got {', '.join(strange)}")
    kept = [recording.select([k for k in names if k not in leave_out]) for recording in recordings]
    seen = np.any([np.isfinite(recording.positions).all(axis=-1).any(axis=0) for recording in kept], axis=0)
    never = [k for k, some in zip(kept[0].keypoints, seen, strict=True) if not some]
    if never:
        option = " ".join(f"--leave-out {k}" for k in never)
        raise DataError(f"fit: every keypoint must be seen somewhere, {', '.join(never)} never is; add {option}")
    return kept


def _check(recordings: Sequence[Recording], settings: Settings) -> float:
    """The common frame rate, after refusing what cannot be fitted."""
    silent = [r.name for r in recordings if r.fps is None]
    if silent:
        raise DataError(f"fit: the frame rate must be known, the file of {silent[0]!r} does not give it; pass --fps")
    rates = sorted({round(float(r.fps or 0), 3) for r in recordings})
    if rates[-1] - rates[0] > 0.01 * rates[0]:
        raise DataError(
            f"fit: all recordings must have one frame rate, got {rates[0]:g} to {rates[-1]:g}; "
            "resample them or fit them apart"
        )
    for name in ("lags", "n_init", "max_steps"):
        if getattr(settings, name) < 1:
            raise DataError(f"fit: {name} must be at least 1, got {getattr(settings, name)}; see --help")
    for recording in recordings:
        if len(recording) <= settings.lags:
            raise DataError(
                f"fit: {recording.name!r} must have more frames than lags ({settings.lags}), got {len(recording)}; "
                "leave it out"
            )
    frames = sum(map(len, recordings))
    if not 1 <= settings.states <= frames:
        raise DataError(f"fit: states must be between 1 and the number of frames ({frames}), got {settings.states}")
    longest = max(map(len, recordings)) / float(recordings[0].fps or 0)
    if settings.target_duration >= longest:
        raise DataError(
            f"fit: target_duration must be shorter than the longest recording ({longest:.2f} s), got "
            f"{settings.target_duration:g} s; check the frame rate, or ask for a shorter duration"
        )
    if not 0 < settings.variance <= 1:
        raise DataError(f"fit: variance must lie between 0 and 1, got {settings.variance:g}")
    return float(recordings[0].fps or 0)


def _search(
    x: Windows, pca: PrincipalComponents, settings: Settings, fps: float, say: Callable[[str], None], progressbar: bool
) -> tuple[Search[Fit], list[float]]:
    """Brief fits to part of the data to find the stickiness, then fits to all of it until they converge.

    Also the bounds of the starts of the first brief fit.
    """
    starts: list[float] = []
    part = _part(x, SEARCH, settings.random_seed)
    growth = _frames(x) / _frames(part)
    target = settings.target_duration * fps

    def trial(stickiness: float, previous: Fit | None) -> tuple[Fit, float]:
        steps = FIRST_STEPS if previous is None else SEARCH_STEPS
        found = run(part, stickiness, previous, steps)
        starts.extend(found[0].attrs["restart_elbos"] if not starts else [])
        return found

    def final(stickiness: float, previous: Fit | None) -> tuple[Fit, float]:
        return run(x, stickiness, previous or brief.state, settings.max_steps)

    def run(data: Windows, stickiness: float, previous: Fit | None, steps: int) -> tuple[Fit, float]:
        """A fit of so many steps at one stickiness, and the median duration of its syllables in frames."""
        fit = vb.fit(
            _model(pca, settings, stickiness),
            data,
            max_steps=steps,
            tol=settings.tol,
            batch_size=_batch_size(data),
            n_init=settings.n_init if previous is None else 1,
            random_seed=settings.random_seed,
            start=previous,
            progressbar=progressbar,
        )
        if fit.attrs.get("interrupted"):
            raise KeyboardInterrupt
        median = median_duration(modes(fit, part), 1)
        say(f"stickiness {stickiness:.3g}: the median syllable lasts {median / fps:.2f} s")
        return fit, median

    say(f"looking for the stickiness whose median syllable lasts {settings.target_duration:g} s")
    brief = choose_stickiness(trial, target)
    say("fitting until it converges")
    more = 4 if brief.reached else 1  # where no stickiness reached the target, long fits will not either
    last = choose_stickiness(final, target, first=brief.stickiness * growth, step=1.0, max_evaluations=more)
    trail = pd.concat(
        [brief.trail.assign(stickiness=brief.trail["stickiness"] * growth), last.trail], ignore_index=True
    )
    found = Search(
        last.stickiness, last.state, last.median / fps, trail.assign(median=trail["median"] / fps), last.reached
    )
    if not found.reached:
        say(f"the median syllable lasts {found.median:.2f} s: {out_of_reach(found, settings.target_duration)}")
    return found, starts


def out_of_reach(search: Search[Fit], target: float) -> str:
    """Why the search ended away from its target, in seconds, and what to do."""
    longest, shortest = search.trail["median"].max(), search.trail["median"].min()
    if longest < target or shortest > target:
        edge = f"the longest was {longest:.2f} s" if longest < target else f"the shortest was {shortest:.2f} s"
        return (
            f"no stickiness that was tried reached {target:g} s ({edge}); check the frame rate (--fps), or ask for "
            "another --target-duration"
        )
    return f"the median jumps over {target:g} s, and no stickiness that was tried came closer; more recordings may help"


def _model(pca: PrincipalComponents, settings: Settings, stickiness: float) -> HMM:
    mean, basis, scale = (torch.as_tensor(part, dtype=torch.float64) for part in (pca.mean, pca.basis, pca.scale))
    subspace = Subspace(mean, basis, scale, float(pca.noise))
    emission = Autoregressive(len(mean), settings.lags, subspace=subspace)
    return HMM(settings.states, emission=emission, stickiness=stickiness, hierarchical=True, learn_prior=True)


def modes(fit: Fit, x: Windows) -> dict[str, np.ndarray]:
    """The states of the most probable path, window by window, quickly.

    Across gaps it is the path under the bound that the fit climbs, which is enough to measure durations between fits;
    labels come from :meth:`ppgen.behavior.pipeline.Pipeline.label`, which sums over what the gaps hide.
    """
    if not isinstance(fit.model, HMM) or not isinstance(fit.posterior, Factors):
        raise DataError(f"modes: the fit must be of an HMM by vb.fit, got {type(fit.model).__name__}")
    _, data, _ = read(fit, x, None)
    with torch.no_grad():
        states, value = observed_given(fit.model, fit.posterior.statistics(), data, None)["x"]
        found = states.completed(value).mode["z_mode"]
    return {name: row[: len(part)] for (name, part), row in zip(x.items(), found.numpy(), strict=True)}


def _part(x: Windows, frames: int, seed: int) -> Windows:
    """Windows drawn at random up to about so many frames; all of them when they are not more."""
    if _frames(x) <= frames:
        return x
    names, total, kept = list(x), 0, []
    for i in np.random.default_rng(seed).permutation(len(names)):
        if total >= frames:
            break
        kept.append(int(i))
        total += len(x[names[i]])
    return {names[i]: x[names[i]] for i in sorted(kept)}


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _batch_size(x: Windows) -> int | None:
    return None if _frames(x) <= WHOLE else max(1, round(BATCH / (_frames(x) / len(x))))


def _frames(x: Windows) -> int:
    return sum(map(len, x.values()))
