"""Numbers behind the figures of a report: mean motions, replicated data, labels as one dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.behavior.files import Labelled
from ppgen.behavior.segments import instances
from ppgen.errors import DataError
from ppgen.pose.recording import Recording

__all__ = ["SPEED", "as_dataset", "mean_bodies", "replicates"]

SPEED = "speed (body lengths/s)"

GONE = 1e6  # body lengths at which simulated bodies are gone: all their distances are this, finite and far
INSTANCES = 300  # instances averaged per syllable: the mean is steady long before


def as_dataset(labelled: Labelled) -> xr.Dataset:
    """Labels of one recording as :func:`ppgen.plots.ethogram` takes them; ``time`` in seconds."""
    variables = {
        "z": (("time", "state"), labelled.probabilities),
        "z_mode": ("time", labelled.syllable),
        "h": (("time", "component"), labelled.latent),
    }
    return xr.Dataset(variables, coords={"time": labelled.frame / labelled.fps})


def mean_bodies(
    recordings: Sequence[Recording],
    labelled: Sequence[Labelled],
    scales: Mapping[str, float],
    *,
    syllables: Sequence[int],
    seconds: float,
) -> xr.DataArray:
    """Mean motion of each syllable from its beginning on, in body lengths, where the body begins at 0 and faces right.

    Parameters
    ----------
    recordings, labelled : each recording and its labels, in the same order.
    scales : body length of each recording, in its own units.
    syllables : syllables to show.
    seconds : time to show of each.

    Returns
    -------
    Dims (syllable, time, keypoint, space); the median over instances of what was seen, NaN where nothing was.
    """
    fps, keypoints = labelled[0].fps, list(recordings[0].keypoints)
    steps = np.arange(max(round(seconds * fps), 1) + 1)
    rows = instances({one.name: one.syllable for one in labelled}, fps)
    places = {one.name: i for i, one in enumerate(labelled)}
    means = []
    for syllable in syllables:
        chosen = rows[rows["syllable"] == syllable]
        chosen = chosen.iloc[np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), INSTANCES)).astype(int))]
        parts = []
        for name, start in zip(chosen["recording"], chosen["start"], strict=True):
            i = places[name]
            parts.append(_motion(recordings[i].positions, labelled[i], scales[name], start + steps))
        means.append(
            _median(np.array(parts)) if parts else np.full((len(steps), *recordings[0].positions.shape[1:]), np.nan)
        )
    coords = {"syllable": list(syllables), "time": steps / fps, "keypoint": keypoints}
    return xr.DataArray(np.array(means), coords, ("syllable", "time", "keypoint", "space"), name="body")


def replicates(simulated: xr.DataArray, x: Mapping[str, np.ndarray], axes: int, fps: float) -> pd.DataFrame:
    """Simulated beside recorded data, as :func:`ppgen.plots.predictive_check` takes them.

    What was not seen in the data is hidden in the simulations too, so that like is compared with like.

    Parameters
    ----------
    simulated : dims (draw, sequence, time, feature), as ``Fit.posterior_predictive`` gives them for ``x``.
    x : recording -> aligned bodies (T, keypoints × axes), in body lengths.
    axes : axes of space, 2 or 3.
    fps : frames per second.
    """
    drawn = simulated.transpose("draw", "sequence", "time", "feature").to_numpy()
    parts = []
    for i, recorded in enumerate(x.values()):
        lost = np.nan_to_num(drawn[:, i, : len(recorded)], nan=GONE)  # a simulation beyond all numbers counts as far
        hidden = np.where(np.isfinite(recorded), lost, np.nan)
        for draw, values in enumerate([recorded, *hidden], start=-1):
            parts += [pd.DataFrame({"statistic": name, "draw": draw, "value": found})
                      for name, found in _statistics(values, axes, fps).items()]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _statistics(x: np.ndarray, axes: int, fps: float) -> dict[str, np.ndarray]:
    """Speed, change over a fifth of a second, and distance from the median pose; far where a body part is gone."""
    bodies = x.reshape(len(x), -1, axes)
    gone = (np.abs(bodies) >= GONE).any(axis=-1)
    bodies = np.where(gone[..., None], 0.0, bodies)
    lag = min(max(round(0.2 * fps), 1), len(x) - 1)
    speed = _length(bodies[1:] - bodies[:-1], gone[1:] | gone[:-1]) * fps
    change = _length(bodies[lag:] - bodies[:-lag], gone[lag:] | gone[:-lag])
    apart = _length(bodies - _median(bodies)[None], gone)
    found = {
        SPEED: speed,
        f"change in {lag / fps:.2g} s (body lengths)": change,
        "off the median pose (body lengths)": apart,
    }
    return {name: values[np.isfinite(values)] for name, values in found.items()}


def _length(steps: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Lengths of steps; one from or to a body part that is gone is far, for two such places are not close."""
    length = np.linalg.norm(steps, axis=-1)
    return np.where(gone & np.isfinite(length), GONE, length)


def _motion(positions: np.ndarray, labelled: Labelled, scale: float, frames: np.ndarray) -> np.ndarray:
    """One instance (frames, P, axes) in the frame of its first body; NaN past the end of the recording."""
    inside = frames[frames < len(positions)]
    body = np.full((len(frames), *positions.shape[1:]), np.nan)
    body[: len(inside)] = (positions[inside] - labelled.centroid[frames[0]]) / scale
    cosine, sine = np.cos(labelled.heading[frames[0]]), np.sin(labelled.heading[frames[0]])
    turn = np.array([[cosine, -sine], [sine, cosine]])
    body[..., :2] = body[..., :2] @ turn
    return body


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the first axis, NaN left out, without a warning where all is NaN."""
    if not len(values):
        raise DataError("median: there must be at least one value, got none")
    seen = np.isfinite(values)
    filled = np.sort(np.where(seen, values, np.inf), axis=0)
    count = seen.sum(0, keepdims=True)
    low, high = (
        np.take_along_axis(filled, np.clip(k, 0, None), 0)[0] for k in ((count - 1) // 2, count // 2 % len(values))
    )
    with np.errstate(invalid="ignore"):
        return np.where(count[0] > 0, (low + high) / 2, np.nan)
