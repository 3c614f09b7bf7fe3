"""Egocentric alignment: the animal's own view, whatever its place, direction, size and missing keypoints."""

import json

import numpy as np
import pytest

from ppgen.errors import DataError
from ppgen.pose.alignment import Template, align, unalign
from ppgen.pose.recording import Recording
from ppgen.pose.simulate import simulate_mice


@pytest.fixture(scope="module")
def mice():
    return simulate_mice(recordings=2, frames=600, random_seed=3)


@pytest.fixture(scope="module")
def aligned(mice):
    return align(mice[0])


def moved(recording, turn, shift, size):
    z = recording.positions[..., 0] + 1j * recording.positions[..., 1]
    z = size * z * np.exp(1j * turn) + shift
    return Recording(recording.name, np.stack([z.real, z.imag], -1), None, recording.keypoints, recording.fps)


def turned_by(a, b):
    return np.angle(np.exp(1j * (a - b)))


def test_unalign_brings_every_keypoint_back(mice, aligned):
    for recording, own in zip(mice[0], aligned.recordings, strict=True):
        back = unalign(own.pose, own.centroid, own.heading, own.scale)
        np.testing.assert_allclose(back, recording.positions, rtol=0, atol=1e-9)


def test_the_pose_is_nan_exactly_where_the_keypoint_is(mice, aligned):
    for recording, own in zip(mice[0], aligned.recordings, strict=True):
        placed = ~np.isnan(own.heading)
        np.testing.assert_array_equal(np.isnan(own.pose[placed]), np.isnan(recording.positions[placed]))
        assert placed.mean() > 0.99


def test_place_direction_and_size_of_the_animal_do_not_matter(mice, aligned):
    other = aligned.template.apply([moved(r, 2.1, 500 - 300j, 0.37) for r in mice[0]])
    for a, b in zip(aligned.recordings, other.recordings, strict=True):
        np.testing.assert_allclose(b.pose, a.pose, atol=1e-9)
        np.testing.assert_allclose(b.scale, 0.37 * a.scale, rtol=1e-12)
        np.testing.assert_allclose(turned_by(b.heading, a.heading + 2.1), 0, atol=1e-9)


def test_a_mirror_image_is_another_pose(mice, aligned):
    mirrored = [Recording(r.name, r.positions * [1, -1], None, r.keypoints, r.fps) for r in mice[0]]
    other = aligned.template.apply(mirrored)
    left = mice[0][0].keypoints.index("left_ear")
    assert np.nanmean(aligned.recordings[0].pose[:, left, 1]) > 0.05
    assert np.nanmean(other.recordings[0].pose[:, left, 1]) < -0.05


def test_heading_and_size_are_those_of_the_simulated_animal(mice, aligned):
    # The 0.06 rad (3.4 degrees) are the difference between the walking direction and the mean direction of the body.
    for truth, own in zip(mice[1], aligned.recordings, strict=True):
        off = turned_by(own.heading, truth.heading)
        assert abs(np.nanmean(off)) < 0.02
        assert np.nanstd(off) < 0.07
        assert own.scale == pytest.approx(truth.scale, rel=0.06)


def test_nothing_jumps_when_a_keypoint_drops_out(mice):
    whole = [Recording(r.name, t.positions, None, r.keypoints, r.fps) for r, t in zip(*mice, strict=True)]
    template = align(whole).template
    reference = template.apply(whole).recordings[0]
    for p in range(len(whole[0].keypoints)):
        gone = whole[0].positions.copy()
        gone[::2, p] = np.nan
        own = template.apply([Recording("gone", gone, None, whole[0].keypoints)]).recordings[0]
        rms = np.sqrt(np.nanmean(turned_by(own.heading, reference.heading) ** 2))
        shift = np.sqrt(np.mean((own.centroid - reference.centroid) ** 2)) / reference.scale
        # Without the conditional mean of the unseen keypoint: 0.014 rad and 0.006 body lengths.
        assert rms < 0.009, whole[0].keypoints[p]
        assert shift < 0.005, whole[0].keypoints[p]


def test_an_outlier_does_not_turn_the_animal(mice, aligned):
    whole = Recording("whole", mice[1][0].positions, None, mice[0][0].keypoints)
    rng = np.random.default_rng(0)
    wild = whole.positions.copy()
    frames = rng.choice(len(wild), len(wild) // 5, replace=False)
    angle = rng.uniform(-np.pi, np.pi, len(frames))
    jump = mice[1][0].scale * np.stack([np.cos(angle), np.sin(angle)], -1)
    wild[frames, rng.integers(8, size=len(frames))] += jump
    good = aligned.template.apply([whole]).recordings[0]
    bad = aligned.template.apply([Recording("wild", wild, None, whole.keypoints)]).recordings[0]
    # Least squares without reweighting turns by 0.24 rad and moves by 0.12 body lengths at the median.
    assert np.median(np.abs(turned_by(good.heading, bad.heading))[frames]) < 0.02
    assert np.median(np.linalg.norm(good.centroid - bad.centroid, axis=1)[frames]) < 0.02 * good.scale
    assert bad.scale == pytest.approx(good.scale, rel=0.05)


def test_the_same_recording_gives_the_same_bits(mice, aligned):
    template = Template.from_dict(json.loads(json.dumps(aligned.template.to_dict())))
    again = template.apply([mice[0][1]]).recordings[0]
    assert again.pose.tobytes() == aligned.recordings[1].pose.tobytes()
    assert again.heading.tobytes() == aligned.recordings[1].heading.tobytes()
    assert again.centroid.tobytes() == aligned.recordings[1].centroid.tobytes()


def test_a_frame_that_shows_too_little_is_missing_as_a_whole(mice, aligned):
    positions = mice[1][0].positions.copy()
    positions[5, 1:] = np.nan
    positions[6] = np.nan
    own = aligned.template.apply([Recording("few", positions, None, mice[0][0].keypoints)]).recordings[0]
    assert np.isnan(own.heading[[5, 6]]).all()
    assert np.isnan(own.pose[[5, 6]]).all()
    assert np.isnan(own.centroid[[5, 6]]).all()
    assert "1 frames show too little" in own.notes[-1]


def test_front_and_back_come_from_the_caller_the_names_or_the_walk(mice, aligned):
    assert "guessed by name" in aligned.notes[0]
    nose, tail = (mice[0][0].keypoints.index(k) for k in ("nose", "tail_base"))
    assert aligned.template.shape[nose, 0] > 0.3 > aligned.template.shape[tail, 0]
    reverse = align(mice[0], anterior="tail_base", posterior="nose")
    assert reverse.template.shape[nose, 0] < -0.3
    nameless = [Recording(r.name, r.positions, None, tuple(f"k{i}" for i in range(8)), r.fps) for r in mice[0]]
    by_walk = align(nameless)
    assert "where the animal walks" in by_walk.notes[0]
    assert by_walk.template.shape[nose, 0] > 0.3


def test_three_dimensions_turn_about_the_vertical_only(mice):
    rng = np.random.default_rng(0)
    solid = []
    for r in mice[0]:
        height = 20 + 5 * np.arange(8)[None] + rng.normal(size=r.positions.shape[:2])
        height[np.isnan(r.positions[..., 0])] = np.nan
        solid.append(Recording(r.name, np.concatenate([r.positions, height[..., None]], -1), None, r.keypoints))
    own = align(solid)
    flat = np.concatenate([r.pose[..., 2] * r.scale + r.centroid[:, None, 2] for r in own.recordings])
    np.testing.assert_allclose(flat, np.concatenate([r.positions[..., 2] for r in solid]), atol=1e-9)
    back = unalign(
        own.recordings[0].pose, own.recordings[0].centroid, own.recordings[0].heading, own.recordings[0].scale
    )
    np.testing.assert_allclose(back, solid[0].positions, atol=1e-9)


def test_forty_per_cent_missing_still_aligns():
    recordings, truth = simulate_mice(recordings=1, frames=500, missing=0.4, random_seed=5)
    own = align(recordings).recordings[0]
    assert np.isnan(own.heading).mean() < 0.05
    assert np.nanstd(turned_by(own.heading, truth[0].heading)) < 0.15


def test_two_keypoints_are_enough_and_one_is_not():
    recordings, truth = simulate_mice(recordings=1, frames=200, missing=0.0)
    two = recordings[0].select(["nose", "tail_base"])
    assert np.nanstd(turned_by(align([two]).recordings[0].heading, truth[0].heading)) < 0.3
    with pytest.raises(DataError, match="at least 2 keypoints"):
        align([recordings[0].select(["nose"])])


def test_what_cannot_be_aligned_is_refused_in_words(mice):
    first, second = mice[0]
    with pytest.raises(DataError, match="got none"):
        align([])
    with pytest.raises(DataError, match=r"differ in \['nose'\]; choose common ones"):
        align([first, second.select(second.keypoints[1:])])
    with pytest.raises(DataError, match="anterior and posterior must be among"):
        align([first], anterior="beak")
    with pytest.raises(DataError, match="they coincide"):
        align([first], anterior="nose", posterior="nose")
    unseen = first.positions.copy()
    unseen[:, 0] = np.nan
    with pytest.raises(DataError, match=r"keypoints \['nose'\] are never seen"):
        align([Recording("r", unseen, None, first.keypoints)])
    alone = np.full_like(first.positions, np.nan)
    alone[:, 3] = 1.0
    with pytest.raises(DataError, match="must show 2 keypoints at once"):
        align([Recording("r", alone, None, first.keypoints)])
