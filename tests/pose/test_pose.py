"""Every format gives the same recording; NaN stays NaN; real files read."""

import importlib.util
import os
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest

from ppgen.errors import DataError, FileError
from ppgen.pose.pose import FORMATS, missing_report, read_poses
from ppgen.pose.recording import Recording

_spec = importlib.util.spec_from_file_location("pose_files", Path(__file__).with_name("pose_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

MAKERS = {
    "deeplabcut_csv": (files.deeplabcut_csv, ".csv"),
    "lightning_pose": (files.lightning_pose, ".csv"),
    "deeplabcut_h5": (files.fixed_h5, ".h5"),
    "sleap_analysis": (files.sleap_analysis, ".analysis.h5"),
    "sleap_labels": (files.sleap_labels, ".slp"),
    "movement": (files.netcdf, ".nc"),
    "npz": (files.npz, ".npz"),
}
OTHERS = {"deeplabcut_h5": files.table_h5, "movement": files.netcdf_new_names}


@pytest.mark.parametrize(
    ("name", "make", "ending"),
    [(n, m, e) for n, (m, e) in MAKERS.items()] + [(n, m, ".any") for n, m in OTHERS.items()],
)
def test_every_format_gives_the_same_recording(tmp_path, name, make, ending):
    path = tmp_path / f"mouse{ending}"
    make(path)
    (recording,) = read_poses(path, fps=30)
    np.testing.assert_array_equal(recording.positions, files.POSITIONS)
    np.testing.assert_array_equal(recording.confidence, files.CONFIDENCE)
    assert recording.keypoints == files.KEYPOINTS
    assert recording.source.startswith(name)
    assert recording.fps == 30
    assert len(read_poses(path, format=name)) == 1


def test_every_format_that_is_named_is_tested():
    assert set(FORMATS) == {*MAKERS, "anipose"}


def test_anipose_is_three_dimensional_and_ignores_its_cameras(tmp_path):
    files.anipose(tmp_path / "a.csv")
    (recording,) = read_poses(tmp_path / "a.csv")
    assert recording.keypoints == files.KEYPOINTS
    np.testing.assert_array_equal(recording.positions[..., :2], files.POSITIONS)
    np.testing.assert_array_equal(recording.positions[0, 0, 2], files.POSITIONS[0, 0, 0] + 1)
    np.testing.assert_array_equal(recording.confidence, files.CONFIDENCE)


@pytest.mark.parametrize("dims", [("frame", "track", "node", "xy"), ("node", "xy", "frame", "track")])
def test_sleap_axes_are_read_by_their_names(tmp_path, dims):
    files.sleap_analysis(tmp_path / "s.h5", dims)
    (recording,) = read_poses(tmp_path / "s.h5")
    np.testing.assert_array_equal(recording.positions, files.POSITIONS)


def test_a_sleap_track_begins_where_it_is_first_seen(tmp_path):
    files.sleap_labels(tmp_path / "s.slp")
    (recording,) = read_poses(tmp_path / "s.slp")
    assert recording.start == 10
    assert recording.frame.tolist() == [10, 11, 12, 13, 14]
    assert recording.individual == "mouse"


def test_untracked_instances_are_one_animal_only_when_alone(tmp_path):
    files.sleap_labels(tmp_path / "one.slp", tracked=False)
    assert read_poses(tmp_path / "one.slp")[0].individual is None
    files.sleap_labels(tmp_path / "two.slp", tracked=False, twice=True)
    with pytest.raises(FileError, match="must appear once per frame.*run SLEAP's tracking"):
        read_poses(tmp_path / "two.slp")


def two_animals():
    columns = [
        ("net", i, k, c) for i in ("m1", "m2", "single") for k in ("nose", "tail") for c in ("x", "y", "likelihood")
    ]
    table = np.random.default_rng(1).uniform(0, 1, (4, 18))
    return columns, table


@pytest.mark.parametrize("layout", ["csv", "fixed", "table"])
def test_several_animals_are_several_recordings(tmp_path, layout):
    columns, table = two_animals()
    path = tmp_path / "pair"
    if layout == "csv":
        path.write_text(files.csv_text(columns, table, ("scorer", "individuals", "bodyparts", "coords")))
    else:
        {"fixed": files.fixed_h5, "table": files.table_h5}[layout](path, columns, table)
    first, second = read_poses(path)
    assert [first.name, second.name] == ["pair.m1", "pair.m2"]
    np.testing.assert_array_equal(second.positions[:, 1], table[:, 9:11])
    assert "'single'" in first.notes[0]


def test_an_animal_nobody_saw_is_left_out_and_said(tmp_path):
    columns, table = two_animals()
    table[:, 6:12] = np.nan
    files.fixed_h5(tmp_path / "x.h5", columns[:12], table[:, :12])
    (recording,) = read_poses(tmp_path / "x.h5")
    assert "['m2'] are never seen" in recording.notes[-1]


def test_low_confidence_is_not_observed_and_nothing_is_made_up(tmp_path):
    files.deeplabcut_csv(tmp_path / "m.csv")
    (recording,) = read_poses(tmp_path / "m.csv", min_confidence=0.7)
    hidden = (files.CONFIDENCE < 0.7) | np.isnan(files.POSITIONS[..., 0])
    assert hidden.sum() > 1
    np.testing.assert_array_equal(np.isnan(recording.positions).any(-1), hidden)
    np.testing.assert_array_equal(recording.positions[~hidden], files.POSITIONS[~hidden])
    np.testing.assert_array_equal(recording.confidence, files.CONFIDENCE)
    assert "confidence below 0.7" in recording.notes[-1]


def test_a_half_seen_point_is_not_seen(tmp_path):
    table = files.TABLE.copy()
    table[0, 0] = np.nan
    (tmp_path / "m.csv").write_text(files.csv_text(table=table))
    (recording,) = read_poses(tmp_path / "m.csv")
    assert np.isnan(recording.positions[0, 0]).all()


@pytest.mark.parametrize("dress", ["bom", "crlf", "semicolon", "tab", "blank end"])
def test_the_dress_of_a_text_file_does_not_matter(tmp_path, dress):
    text = files.csv_text(sep={"semicolon": ";", "tab": "\t"}.get(dress, ","))
    data = text.encode()
    if dress == "bom":
        data = b"\xef\xbb\xbf" + data
    if dress == "crlf":
        data = data.replace(b"\n", b"\r\n")
    if dress == "blank end":
        data += b"\n\n"
    (tmp_path / "m.csv").write_bytes(data)
    np.testing.assert_array_equal(read_poses(tmp_path / "m.csv")[0].positions, files.POSITIONS)


def test_frames_left_out_of_the_file_are_missing_frames(tmp_path):
    (tmp_path / "m.csv").write_text(files.csv_text(index=[3, 4, 7, 8, 9]))
    (recording,) = read_poses(tmp_path / "m.csv")
    assert recording.start == 3
    assert len(recording) == 7
    assert np.isnan(recording.positions[2:4]).all()
    assert "2 frames are not in the file" in recording.notes[0]


def test_a_keypoint_never_seen_is_a_note(tmp_path):
    table = files.TABLE.copy()
    table[:, 3:5] = np.nan
    (tmp_path / "m.csv").write_text(files.csv_text(table=table))
    assert "keypoints ['left ear'] were never seen" in read_poses(tmp_path / "m.csv")[0].notes


def test_names_come_from_files_and_their_folders_only_when_needed(tmp_path):
    for folder in ("day1", "day2"):
        (tmp_path / folder).mkdir()
        files.deeplabcut_csv(tmp_path / folder / "m.csv")
    both = read_poses([tmp_path / "day1" / "m.csv", tmp_path / "day2" / "m.csv"])
    assert [r.name for r in both] == ["day1_m", "day2_m"]
    with pytest.raises(FileError, match="must have different names"):
        read_poses([tmp_path / "day1" / "m.csv"] * 2)
    assert read_poses(tmp_path / "day1" / "m.csv", recording="anna")[0].name == "anna"
    with pytest.raises(DataError, match="recording must be left out"):
        read_poses([tmp_path / "day1" / "m.csv"], recording="anna")


def test_prefixes_tell_animals_apart(tmp_path):
    columns = [("net", f"{i}_{k}", c) for i in "BW" for k in ("nose", "tail") for c in ("x", "y", "likelihood")]
    files.fixed_h5(tmp_path / "x.h5", columns, two_animals()[1][:, :12])
    black, white = read_poses(tmp_path / "x.h5", individuals=["B_", "W_"])
    assert black.keypoints == white.keypoints == ("nose", "tail")
    assert (black.individual, white.individual) == ("B", "W")
    with pytest.raises(FileError, match="no keypoint begins with 'G_'"):
        read_poses(tmp_path / "x.h5", individuals=["G_"])


@pytest.mark.parametrize("new_names", [False, True])
def test_a_dataset_in_memory_is_read_and_written_alike(new_names):
    (recording,) = read_poses(files.dataset(new_names), recording="m")
    assert recording.fps == 30
    (again,) = read_poses(recording.to_xarray(), recording="m")
    np.testing.assert_array_equal(again.positions, files.POSITIONS)
    assert again.keypoints == recording.keypoints
    assert again.fps == 30


def test_the_space_axis_is_read_by_its_labels():
    flipped = files.dataset().isel(space=[1, 0])
    np.testing.assert_array_equal(read_poses(flipped)[0].positions, files.POSITIONS)


def test_other_software_goes_through_movement_when_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "x.via").write_text("anything")
    with pytest.raises(FileError, match=r"pip install 'ppgen\[movement\]'"):
        read_poses(tmp_path / "x.via", format="movement:VIA-tracks")
    package, io = types.ModuleType("movement"), types.ModuleType("movement.io")
    package.__spec__ = importlib.util.spec_from_loader("movement", None)
    io.load_dataset = lambda path, source_software, fps: files.dataset(new_names=True)
    monkeypatch.setitem(sys.modules, "movement", package)
    monkeypatch.setitem(sys.modules, "movement.io", io)
    np.testing.assert_array_equal(
        read_poses(tmp_path / "x.via", format="movement:VIA-tracks")[0].positions, files.POSITIONS
    )


def test_the_report_of_missing_points_counts_shares_and_gaps():
    positions = np.zeros((10, 2, 2))
    positions[[1, 4, 5, 6], 0] = np.nan
    report = missing_report([Recording("r", positions, None, ("nose", "tail"), 2.0)])
    assert report.loc[("r", "nose")].tolist() == [0.4, 3.0, 1.5]
    assert report.loc[("r", "tail")].tolist() == [0.0, 0.0, 0.0]


def test_a_recording_checks_itself():
    with pytest.raises(DataError, match="must be among"):
        Recording("r", np.zeros((2, 1, 2)), None, ("nose",)).select(["tail"])
    with pytest.raises(DataError, match="fps must be a positive number"):
        Recording("r", np.zeros((2, 1, 2)), None, ("nose",), fps=0.0)


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("mouse_openfield_dlc.csv", {}, {(17918, 4, 2)}),
        ("mouse_square_arena_dlc.h5", {}, {(451, 14, 2)}),
        ("mice_multi_dlc.h5", {"individuals": ["B_", "W_"]}, {(100, 14, 2)}),
        ("flies_sleap.h5", {}, None),
    ],
)
def test_real_files_read(name, options, shapes):
    folder = os.environ.get("PPGEN_DATA")
    if not folder:
        pytest.skip("PPGEN_DATA is not set: the folder of real recordings; simulated files are tested anyway")
    recordings = read_poses(Path(folder) / name, min_confidence=0.2, **options)
    if shapes:
        assert {r.positions.shape for r in recordings} == shapes
    assert sum(len(r) for r in recordings) >= 100
    assert min(r.missing for r in recordings) < 0.2
    if "flies" in name:
        assert recordings[0].keypoints[:3] == ("head", "neck", "thorax")
        ahead = recordings[0].select(["head", "thorax", "abdomen"]).positions
        # The order of points is right only if the thorax lies between head and abdomen.
        assert np.nanmedian(np.sum((ahead[:, 0] - ahead[:, 1]) * (ahead[:, 2] - ahead[:, 1]), -1)) < 0


def test_a_table_can_have_several_blocks(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("df")
        group.attrs["pandas_type"] = b"frame_table"
        kinds = [("index", "<i8"), ("values_block_0", "<f8", (4,)), ("values_block_1", "<f4", (2,))]
        data = group.create_dataset("table", data=_rows(kinds))
        names = [[("s", "n", "x"), ("s", "n", "y"), ("s", "t", "x"), ("s", "t", "y")]]
        names.append([("s", "n", "likelihood"), ("s", "t", "likelihood")])
        for i, kind in enumerate(names):
            data.attrs[f"values_block_{i}_kind"] = np.bytes_(files.pickle.dumps(kind, protocol=0))
    (recording,) = read_poses(tmp_path / "x.h5")
    assert recording.keypoints == ("n", "t")
    np.testing.assert_array_equal(recording.confidence, np.full((3, 2), 0.5))


def _rows(kinds):
    rows = np.ones(3, dtype=kinds)
    rows["index"] = np.arange(3)
    rows["values_block_1"] = 0.5
    return rows
