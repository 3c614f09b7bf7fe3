"""From a recording to its labels: alignment, subspace, hidden Markov model and numbering, kept together on disk.

A recording is labelled on its own, by the pipeline as it was read back from disk, when it is fitted and ever after; so
the labels of a training file are the same bits when the pipeline is applied to it again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ppgen.behavior.files import Labelled
from ppgen.behavior.numbering import numbered
from ppgen.errors import DataError, FileError
from ppgen.pose.alignment import Aligned, Template
from ppgen.pose.recording import Recording
from ppgen.results.fit import Fit, load
from ppgen.storage.folder import read_tensors, write_tensors

__all__ = ["Pipeline", "observations", "renumbered"]

# Frames labelled together, and how many more are read on either side: hours of video in little memory.
FRAMES_AT_ONCE, OVERLAP = 60_000, 600
# The file beside those of the fit; and the folder of the fit in pipelines of earlier versions.
PARTS, EARLIER = "pipeline.safetensors", "fit"


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A fitted pipeline: everything that labelling needs.

    Attributes
    ----------
    fit : the fitted hidden Markov model.
    template : alignment and scale of bodies.
    order : (K,) state of the model -> number of the syllable: the same number, but in pipelines of earlier versions.
    settings : options of the fit: ``fps``, ``keypoints``, ``width`` of the subspace, and the other
        options.
    """

    fit: Fit
    template: Template
    order: np.ndarray
    settings: Mapping[str, Any]

    @property
    def states(self) -> int:
        """Number of states K, used or not."""
        return len(self.order)

    def numbered(self, order: np.ndarray) -> "Pipeline":
        """The same pipeline with syllable ``k`` called ``order[k]``, and the states of its model numbered so too."""
        fit = numbered(self.fit, np.asarray(order)[self.order])
        return replace(self, fit=fit, order=np.arange(self.states))

    def align(self, recordings: Sequence[Recording]) -> Aligned:
        """Align recordings to the bodies this pipeline was fitted to.

        Raises
        ------
        DataError : a recording lacks a keypoint or has another frame rate.
        """
        return self.template.apply([self._checked(recording) for recording in recordings])

    def label(self, recording: Recording) -> Labelled:
        """Label one recording."""
        aligned = self.align([recording]).recordings[0]
        probabilities, syllable, latent = self._infer(aligned.features)
        labelled = Labelled(
            name=aligned.name,
            fps=float(self.settings["fps"]),
            start=aligned.start,
            probabilities=probabilities,
            syllable=syllable,
            latent=latent,
            centroid=aligned.centroid,
            heading=aligned.heading,
        )
        return renumbered(labelled, self.order)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the pipeline: a saved fit with one more file in its folder. Nothing in it is ever executed."""
        self.fit.save(folder, overwrite=overwrite)
        order = torch.as_tensor(self.order.astype(np.int64))
        content = {"settings": dict(self.settings), "template": self.template.to_dict()}
        write_tensors(folder / PARTS, {"order": order}, content)

    @classmethod
    def load(cls, folder: Path) -> "Pipeline":
        """Read what :meth:`save` wrote; ``folder`` may also be the output folder of ``fit``."""
        inner = folder / "model" if (folder / "model").is_dir() else folder
        if not (inner / PARTS).is_file():
            raise FileError(f"model: {folder} must be a folder that fit wrote, it has no {PARTS}; check the path")
        content, tensors = read_tensors(inner / PARTS)
        try:
            template = Template.from_dict(content["template"])
            fit = load(inner / EARLIER if (inner / EARLIER).is_dir() else inner)
            return cls(fit, template, tensors["order"].numpy(), content["settings"])
        except (KeyError, TypeError) as error:
            raise FileError(f"model: {inner / PARTS} is not a whole pipeline ({error}); run fit again") from error

    def _checked(self, recording: Recording) -> Recording:
        fps = float(self.settings["fps"])
        if recording.fps is None or abs(recording.fps - fps) > 0.01 * fps:
            rate = "unknown" if recording.fps is None else f"{recording.fps:g}"
            raise DataError(
                f"model: {recording.name!r} must have {fps:g} frames per second like the recordings of the fit, "
                f"got {rate}; resample it, or pass --fps {fps:g} if that is its true rate"
            )
        return recording.select(self.settings["keypoints"])

    def _infer(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities (T, K), states (T,), latents (T, L); NaN and -1 after the last frame that shows anything."""
        seen = np.isfinite(x).any(axis=1)
        end = int(np.flatnonzero(seen)[-1]) + 1 if seen.any() else 0
        kept, source = _without_long_gaps(seen[:end])
        shown = x[:end][kept]
        edges = np.linspace(0, len(shown), math.ceil(len(shown) / FRAMES_AT_ONCE) + 1).astype(int).tolist()
        parts = [self._infer_piece(shown, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        answers = self._nothing(len(x))
        if parts:
            for answer, pieces in zip(answers, zip(*parts, strict=True), strict=True):
                answer[:end] = np.concatenate(pieces)[source]
        return answers

    def _infer_piece(self, x: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames ``start`` to ``stop`` of ``x``, whose last frame shows something, read in a window around them."""
        low, high = _window(np.isfinite(x).any(axis=1), start, stop)
        found: xr.Dataset = self.fit.latents({"recording": x[low:high]}, random_seed=0).isel(sequence=0)
        kept = slice(start - low, stop - low)
        z = found["z"].transpose("time", "state").to_numpy()[kept].astype(np.float32)
        h = found["h"].transpose("time", "component").to_numpy()[kept].astype(float)
        return z, found["z_mode"].to_numpy()[kept].astype(int), h

    def _nothing(self, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The answer for frames after the last one in which something was seen."""
        width = int(self.settings["width"])
        probabilities = np.full((frames, self.states), np.nan, np.float32)
        return probabilities, np.full(frames, -1), np.full((frames, width), np.nan)


def _without_long_gaps(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose frames (T,) such that no gap is longer than twice the overlap; also give the kept frame of each frame.

    Far from what was seen nothing changes from frame to frame, so the middle of a gap may stand for many frames.
    """
    kept = np.ones(len(seen), bool)
    edges = np.flatnonzero(np.diff(np.r_[False, ~seen, False].astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        kept[start + OVERLAP + 1 : stop - OVERLAP] = False
    return kept, np.cumsum(kept) - 1


def _window(seen: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """The frames to read for ``start`` to ``stop``: past any gap at either end, then the overlap.

    A window that ended inside a gap would be a recording that ends there.
    """
    places = np.flatnonzero(seen)
    before, behind = places[places < start], places[places >= stop]
    low = int(before[-1]) + 1 if len(before) else 0
    high = int(behind[0]) if len(behind) else len(seen)
    return max(low - OVERLAP, 0), min(high + OVERLAP, len(seen))


def renumbered(labelled: Labelled, order: np.ndarray) -> Labelled:
    """The same labels with state ``k`` called ``order[k]``."""
    syllable = np.where(labelled.syllable >= 0, order[labelled.syllable], -1)
    return replace(labelled, syllable=syllable, probabilities=labelled.probabilities[:, np.argsort(order)])


def observations(aligned: Aligned) -> dict[str, np.ndarray]:
    """Aligned bodies as rows: recording -> (T, keypoints × axes), NaN where not seen."""
    return {one.name: one.features for one in aligned.recordings}
