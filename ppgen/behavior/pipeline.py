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
from ppgen.data.alignment import Aligned, Template
from ppgen.data.recording import Recording
from ppgen.errors import DataError, FileError
from ppgen.results.fit import Fit, load
from ppgen.results.storage import read_tensors, write_tensors

__all__ = ["Pipeline", "observations", "renumbered"]

CHUNK, OVERLAP = 60_000, 600
"""Frames labelled together, and how many more are read on either side: hours of video in little memory."""
FIT, PARTS = "fit", "pipeline.safetensors"


@dataclass(frozen=True, eq=False)
class Pipeline:
    """All that labelling needs.

    Attributes
    ----------
    fit
        The fitted hidden Markov model.
    template
        How bodies are aligned and scaled.
    order
        (K,) state of the model -> number of the syllable.
    settings
        What the pipeline was fitted with: ``fps``, ``keypoints``, ``width`` of the subspace, and the other options.
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
        """The same pipeline with syllables numbered by ``order``."""
        return replace(self, order=np.asarray(order))

    def align(self, recordings: Sequence[Recording]) -> Aligned:
        """Align recordings to the bodies this pipeline was fitted to.

        Raises
        ------
        DataError
            A recording lacks a keypoint or has another frame rate.
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
        """Write the pipeline: the fit, and one file with the rest. Nothing in it is ever executed."""
        folder.mkdir(parents=True, exist_ok=True)
        self.fit.save(folder / FIT, overwrite=overwrite)
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
            return cls(load(inner / FIT), template, tensors["order"].numpy(), content["settings"])
        except (KeyError, TypeError) as error:
            raise FileError(f"model: {inner / PARTS} is not a whole pipeline ({error}); run fit again") from error

    def _checked(self, recording: Recording) -> Recording:
        wanted = float(self.settings["fps"])
        if recording.fps is None or abs(recording.fps - wanted) > 0.01 * wanted:
            rate = "unknown" if recording.fps is None else f"{recording.fps:g}"
            raise DataError(
                f"model: {recording.name!r} must have {wanted:g} frames per second like the recordings of the fit, "
                f"got {rate}; resample it, or say --fps {wanted:g} if that is its true rate"
            )
        return recording.select(self.settings["keypoints"])

    def _infer(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities (T, K), states (T,), latents (T, L); NaN and -1 after the last frame that shows anything."""
        T = len(x)
        pieces = max(math.ceil(T / CHUNK), 1)
        edges = np.linspace(0, T, pieces + 1).astype(int).tolist()
        parts = [self._infer_piece(x, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        probabilities, state, latent = (np.concatenate(part) for part in zip(*parts, strict=True))
        probabilities[state < 0], latent[state < 0] = np.nan, np.nan
        return probabilities, state, latent

    def _infer_piece(self, x: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        low, high = max(start - OVERLAP, 0), min(stop + OVERLAP, len(x))
        if not np.isfinite(x[low:high]).any():
            return self._nothing(stop - start)
        found: xr.Dataset = self.fit.latents({"recording": x[low:high]}).isel(sequence=0)
        kept = slice(start - low, stop - low)
        z = found["z"].transpose("time", "state").to_numpy()[kept].astype(np.float32)
        h = found["h"].transpose("time", "component").to_numpy()[kept].astype(float)
        return z, found["z_mode"].to_numpy()[kept].astype(int), h

    def _nothing(self, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The answer for frames in which nothing was seen."""
        width = int(self.settings["width"])
        return np.zeros((frames, self.states), np.float32), np.full(frames, -1), np.zeros((frames, width))


def renumbered(labelled: Labelled, order: np.ndarray) -> Labelled:
    """The same labels with state ``k`` called ``order[k]``."""
    syllable = np.where(labelled.syllable >= 0, order[labelled.syllable], -1)
    return replace(labelled, syllable=syllable, probabilities=labelled.probabilities[:, np.argsort(order)])


def observations(aligned: Aligned) -> dict[str, np.ndarray]:
    """Aligned bodies as rows: recording -> (T, keypoints × axes), NaN where not seen."""
    return {one.name: one.features for one in aligned.recordings}
