"""Mice that were never there: postures and walks with known syllables, as a tracker would have seen them.

A body is a chain of keypoints along a spine that bends, stretches, rears and turns its head. Each of these five
postures follows, within a syllable, a stable second-order autoregression around that syllable's own target
(an overdamped approach, or an oscillation); the walking speed and the turning rate follow first-order ones. Syllables
follow a semi-Markov chain with gamma durations. The camera adds noise, loses single points and occludes keypoints for
several frames.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from jaxtyping import Float, Int

from ppgen.errors import DataError
from ppgen.pose.recording import Recording

__all__ = ["Truth", "simulate_mice", "write_deeplabcut_csv"]

# name, place along the spine (0 tail base, 1 nose) and to the left of it, in body lengths
BODY = (
    ("nose", 1.00, 0.00),
    ("tail_base", 0.00, 0.00),
    ("left_ear", 0.80, 0.11),
    ("right_ear", 0.80, -0.11),
    ("spine_mid", 0.42, 0.00),
    ("neck", 0.66, 0.00),
    ("left_hip", 0.14, 0.13),
    ("right_hip", 0.14, -0.13),
    ("left_shoulder", 0.58, 0.10),
    ("right_shoulder", 0.58, -0.10),
    ("spine_low", 0.22, 0.00),
    ("spine_high", 0.54, 0.00),
    ("left_forehead", 0.88, 0.05),
    ("right_forehead", 0.88, -0.05),
)

POSTURES = ("bend", "head_yaw", "stretch", "rear", "sway")
# Per syllable: seconds, speed (body lengths/s), turning (rad/s), and per posture (target, sd, Hz, damping 1/s).
CALM = (0.0, 0.02, 0.0, 12.0)
SYLLABLES: tuple[tuple[str, float, float, float, dict[str, tuple[float, float, float, float]]], ...] = (
    ("run", 0.60, 3.0, 0.0, {"stretch": (0.12, 0.03, 0.0, 12.0), "sway": (0.0, 0.14, 4.0, 2.5)}),
    ("turn_left", 0.45, 0.8, 3.2, {"bend": (0.75, 0.08, 0.0, 9.0), "head_yaw": (0.35, 0.06, 0.0, 9.0)}),
    ("turn_right", 0.45, 0.8, -3.2, {"bend": (-0.75, 0.08, 0.0, 9.0), "head_yaw": (-0.35, 0.06, 0.0, 9.0)}),
    ("rear", 0.70, 0.0, 0.0, {"rear": (0.95, 0.07, 0.0, 7.0), "stretch": (-0.05, 0.03, 0.0, 9.0)}),
    ("groom", 0.80, 0.0, 0.0, {"rear": (0.50, 0.05, 0.0, 9.0), "head_yaw": (0.0, 0.22, 5.0, 3.0)}),
    ("pause", 0.60, 0.0, 0.0, {"stretch": (-0.12, 0.01, 0.0, 6.0)}),
    ("head_scan", 0.65, 0.1, 0.0, {"head_yaw": (0.0, 0.50, 1.6, 2.0)}),
    ("stretch", 0.50, 0.4, 0.0, {"stretch": (0.32, 0.03, 0.0, 6.0), "rear": (0.10, 0.03, 0.0, 9.0)}),
    ("walk", 0.70, 1.2, 0.0, {"sway": (0.0, 0.10, 2.2, 2.5)}),
    ("back_up", 0.45, -0.9, 0.0, {"stretch": (-0.18, 0.03, 0.0, 9.0), "sway": (0.0, 0.06, 3.0, 2.5)}),
    ("curl_left", 0.60, 0.0, 0.6, {"bend": (1.20, 0.06, 0.0, 7.0), "rear": (0.25, 0.04, 0.0, 9.0)}),
    ("shake", 0.45, 0.0, 0.0, {"bend": (0.0, 0.20, 6.0, 3.0)}),
)
ARENA = 6.0
CAMERA_NOISE = 0.012
GAP_FRAMES = 12.0


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth behind one simulated recording.

    ``syllable`` (T,) indexes ``names``; ``positions`` (T, P, 2) has neither noise nor gaps; ``centroid`` (T, 2) is the
    middle of the spine, ``heading`` (T,) the direction of the body in radians, ``scale`` the body length in pixels.
    """

    syllable: Int[np.ndarray, " T"]
    positions: Float[np.ndarray, "T P 2"]
    centroid: Float[np.ndarray, "T 2"]
    heading: Float[np.ndarray, " T"]
    scale: float
    names: tuple[str, ...]


def simulate_mice(
    recordings: int = 3,
    frames: int | Sequence[int] = (3000, 2400, 1800),
    keypoints: int = 8,
    syllables: int = 8,
    missing: float = 0.12,
    fps: float = 30.0,
    random_seed: int | None = 0,
) -> tuple[list[Recording], list[Truth]]:
    """Simulate recordings of mice of different sizes whose syllables are known.

    Parameters
    ----------
    recordings : number of recordings, one animal each.
    frames : frames of each recording, or one number for all.
    keypoints : 3 to 14, from nose and tail base to the forehead.
    syllables : 2 to 12, from running to shaking; mean durations are 0.45 to 0.8 s.
    missing : expected share of keypoints that are not observed: half of it single points, half gaps of 12 frames on
        average.
    fps : frames per second; the same behaviour at any rate.
    random_seed : None for a new one each time.

    Returns
    -------
    recordings, truth : one of each per animal, in the same order.
    """
    counts = [frames] * recordings if isinstance(frames, int) else list(frames)
    _check(recordings, counts, keypoints, syllables, missing, fps)
    rng = np.random.default_rng(random_seed)
    transition = _transition(syllables, rng)
    pairs = [_one(f"mouse_{i + 1}", count, keypoints, transition, missing, fps, rng) for i, count in enumerate(counts)]
    return [r for r, _ in pairs], [t for _, t in pairs]


def write_deeplabcut_csv(recording: Recording, path: str | Path) -> Path:
    """Write a 2-D recording as DeepLabCut does (3 header rows); NaN becomes an empty cell. Returns the path."""
    if recording.positions.shape[2] != 2:
        raise DataError("write_deeplabcut_csv: positions must be 2-D, got 3-D; DeepLabCut's csv has x and y only")
    confidence = recording.confidence
    if confidence is None:
        confidence = np.isfinite(recording.positions).all(-1).astype(np.float64)
    table = np.concatenate([recording.positions, confidence[..., None]], -1).reshape(len(recording), -1)
    header = zip(*[("ppgen", k, c) for k in recording.keypoints for c in ("x", "y", "likelihood")], strict=True)
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for label, cells in zip(("scorer", "bodyparts", "coords"), header, strict=True):
            writer.writerow([label, *cells])
        for frame, row in zip(recording.frame.tolist(), table.tolist(), strict=True):
            writer.writerow([frame, *("" if v != v else repr(v) for v in row)])
    return path


def _check(recordings: int, counts: Sequence[int], keypoints: int, syllables: int, missing: float, fps: float) -> None:
    who = "simulate_mice"
    if recordings < 1 or len(counts) != recordings:
        raise DataError(f"{who}: frames must be one number or one per recording ({recordings}), got {len(counts)}")
    if min(counts) < 2:
        raise DataError(f"{who}: every recording must have at least 2 frames, got {min(counts)}")
    if not 3 <= keypoints <= len(BODY):
        raise DataError(f"{who}: keypoints must lie in 3-{len(BODY)}, got {keypoints}")
    if not 2 <= syllables <= len(SYLLABLES):
        raise DataError(f"{who}: syllables must lie in 2-{len(SYLLABLES)}, got {syllables}")
    if not 0 <= missing < 0.9:
        raise DataError(f"{who}: missing must lie in 0-0.9, got {missing}")
    if not 15 <= fps <= 500:
        raise DataError(f"{who}: fps must lie in 15-500 (slower cameras miss the movements), got {fps}")


def _one(
    name: str,
    frames: int,
    keypoints: int,
    transition: np.ndarray,
    missing: float,
    fps: float,
    rng: np.random.Generator,
) -> tuple[Recording, Truth]:
    """One recording and its truth: syllables, then postures and walk, then what a camera sees of the body."""
    syllable = _syllable_sequence(frames, transition, fps, rng)
    dynamics, drive = _coefficients(len(transition), fps)
    steps = _move(syllable, dynamics, drive, rng.standard_normal((frames, len(POSTURES) + 2)), fps, ARENA)
    posture, heading, centroid = steps[:, :5], steps[:, 5], steps[:, 6:]
    scale = float(rng.uniform(60.0, 140.0))
    body = _body(posture, keypoints)
    turn = np.exp(1j * heading)[:, None]
    points = (body * turn + (centroid[:, 0] + 1j * centroid[:, 1])[:, None]) * scale + scale * (1 + 1j) * (ARENA + 2)
    positions = np.stack([points.real, points.imag], -1)
    names = tuple(s[0] for s in SYLLABLES[: len(transition)])
    absent = _absent(frames, keypoints, missing, rng)
    seen = positions + CAMERA_NOISE * scale * rng.standard_normal(positions.shape)
    seen[absent] = np.nan
    confidence = np.where(absent, rng.beta(1, 8, absent.shape), rng.beta(30, 1, absent.shape))
    recording = Recording(name, seen, confidence, tuple(k for k, _, _ in BODY[:keypoints]), fps, None, "simulated")
    offset = scale * (ARENA + 2)
    return recording, Truth(syllable, positions, centroid * scale + offset, _wrapped(heading), scale, names)


def _transition(syllables: int, rng: np.random.Generator) -> np.ndarray:
    weights = rng.gamma(1.5, size=(syllables, syllables)) + 0.05
    np.fill_diagonal(weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def _syllable_sequence(frames: int, transition: np.ndarray, fps: float, rng: np.random.Generator) -> np.ndarray:
    """Semi-Markov: gamma durations of shape 4, at least 0.15 s, then a jump to another syllable."""
    mean = np.array([s[1] for s in SYLLABLES[: len(transition)]]) * fps
    shortest = max(2, round(0.15 * fps))
    jumps = int(frames / mean.min() * 1.5) + 64
    chain = _chain(np.cumsum(transition, 1), int(rng.integers(len(transition))), rng.random(jumps))
    lasting = np.maximum(shortest, np.round(rng.gamma(4.0, mean[chain] / 4.0))).astype(np.int64)
    sequence = np.repeat(chain, lasting)
    if len(sequence) < frames:  # bad luck with short durations: draw on from where it ended
        rest = _syllable_sequence(frames - len(sequence), transition, fps, rng)
        sequence = np.concatenate([sequence, rest])
    return sequence[:frames]


@numba.njit(cache=True)
def _chain(cumulative: np.ndarray, start: int, uniform: np.ndarray) -> np.ndarray:
    states = np.empty(len(uniform), dtype=np.int64)
    state = start
    for i in range(len(uniform)):
        states[i] = state
        state = min(np.searchsorted(cumulative[state], uniform[i], side="right"), len(cumulative) - 1)
    return states


def _coefficients(syllables: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """(target, phi1, phi2, sd of a step) of each syllable and posture, and (speed, turning) of each syllable."""
    dynamics = np.empty((syllables, len(POSTURES), 4))
    for k, (_, _, _, _, given) in enumerate(SYLLABLES[:syllables]):
        for j, posture in enumerate(POSTURES):
            target, sd, hertz, damping = given.get(posture, CALM)
            radius = np.exp(-damping / fps)
            one, two = 2 * radius * np.cos(2 * np.pi * hertz / fps), -(radius**2)
            step = sd * np.sqrt((1 + two) * ((1 - two) ** 2 - one**2) / (1 - two))
            dynamics[k, j] = target, one, two, step
    return dynamics, np.array([[s[2], s[3]] for s in SYLLABLES[:syllables]])


@numba.njit(cache=True)
def _move(
    syllable: np.ndarray, dynamics: np.ndarray, drive: np.ndarray, noise: np.ndarray, fps: float, arena: float
) -> np.ndarray:
    """Five postures of each frame, heading, and centroid (x, y) in body lengths."""
    out = np.empty((len(syllable), 8))
    now, before = np.zeros(5), np.zeros(5)
    speed, turning, heading, px, py = 0.0, 0.0, 0.0, 0.0, 0.0
    keep = np.exp(-8.0 / fps)
    push = np.sqrt(1.0 - keep * keep)
    for t in range(len(syllable)):
        k = syllable[t]
        for j in range(5):
            target = dynamics[k, j, 0]
            value = target + dynamics[k, j, 1] * (now[j] - target) + dynamics[k, j, 2] * (before[j] - target)
            before[j] = now[j]
            now[j] = value + dynamics[k, j, 3] * noise[t, j]
            out[t, j] = now[j]
        speed = drive[k, 0] + keep * (speed - drive[k, 0]) + push * 0.12 * noise[t, 5]
        wall = 0.0
        if px * px + py * py > arena * arena:  # near the wall, steer back to the middle
            wall = 2.5 * np.sin(np.arctan2(-py, -px) - heading)
        turning = drive[k, 1] + wall + keep * (turning - drive[k, 1] - wall) + push * 0.25 * noise[t, 6]
        heading += turning / fps
        px += speed * np.cos(heading) / fps
        py += speed * np.sin(heading) / fps
        out[t, 5], out[t, 6], out[t, 7] = heading, px, py
    return out


def _body(posture: np.ndarray, keypoints: int) -> np.ndarray:
    """Complex positions (T, P), mid-spine at 0, facing the positive real axis, body length one."""
    bend, yaw, stretch, rear, sway = posture.T[:, :, None]
    along, left = np.array([[a, b] for _, a, b in BODY[:keypoints]]).T
    reach = along - 0.42
    # Rearing lifts the front: seen from above, it grows shorter towards the nose.
    shorter = 1.0 - 0.45 * np.clip(rear, 0.0, 1.3) * np.clip(reach, 0.0, None)
    distance = reach * (1.0 + stretch) * shorter
    angle = 0.5 * bend * reach * 1.6 + sway * np.sin(np.pi * along)
    spine = distance * np.exp(1j * angle)
    direction = 2 * angle + np.where(along > 0.7, yaw, 0.0)
    neck = 0.24 * (1.0 + stretch) * (1.0 - 0.45 * np.clip(rear, 0.0, 1.3) * 0.24)
    neck_point = neck * np.exp(1j * (0.5 * bend * 0.24 * 1.6 + sway * np.sin(np.pi * 0.66)))
    turned = neck_point + (spine - neck_point) * np.exp(1j * yaw)
    return np.where(along > 0.7, turned, spine) + 1j * left * (1.0 - 0.2 * rear) * np.exp(1j * direction)


def _absent(frames: int, keypoints: int, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Missing points (T, P): half of their share as single points, half as gaps of geometric length."""
    single = missing / 2
    gap = 1.0 - (1.0 - missing) / (1.0 - single)
    begins = rng.random((frames, keypoints)) < -np.log1p(-gap) / GAP_FRAMES
    at, point = np.nonzero(begins)
    ends = np.minimum(at + rng.geometric(1.0 / GAP_FRAMES, len(at)), frames)
    change = np.zeros((frames + 1, keypoints), dtype=np.int64)
    np.add.at(change, (at, point), 1)
    np.add.at(change, (ends, point), -1)
    return (np.cumsum(change[:-1], 0) > 0) | (rng.random((frames, keypoints)) < single)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return np.angle(np.exp(1j * angle))
