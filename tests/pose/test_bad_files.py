"""Bad and hostile files: one FileError each, in words that name the file, and nothing is run or eaten."""

import contextlib
import importlib.util
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ppgen.errors import DataError, FileError
from ppgen.pose.pose import read_poses
from ppgen.pose.readers.pickled_names import decode_names

_spec = importlib.util.spec_from_file_location("pose_files", Path(__file__).with_name("pose_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

HEADER = files.csv_text(table=files.TABLE[:0])
GOOD = files.csv_text()


def with_column(name, value, row=0):
    table = files.TABLE.copy()
    table[row, files.COLUMNS.index(name)] = value
    return files.csv_text(table=table)


BAD_TEXT = {
    "empty": ("", r"it is empty \(0 bytes\)"),
    "blank": ("\n\n", "must hold poses, it is empty"),
    "header only": (HEADER, "it has the header only"),
    "binary": ("\0\1\2\3" * 100, "must be text, it is binary"),
    "two header rows": (GOOD.replace("coords,", "", 1).split("\n", 1)[1], "must begin with 3 header rows"),
    "no bodyparts": ("\n".join([GOOD.split("\n")[0], *GOOD.split("\n")[2:]]), "must begin with 3 header rows"),
    "text": (
        GOOD.replace(repr(float(files.TABLE[0, 4])), "oops"),
        "line 4, column 'left ear y' must be a number.*'oops'",
    ),
    "labelled images": (GOOD.replace("\n0,", "\nimg0.png,"), "labelled images are not a recording"),
    "underscore number": (GOOD.replace("\n0,", "\n1_0,"), "must be a number"),
    "likelihood": (
        with_column(("net", "nose", "likelihood"), 1.5),
        "likelihood must lie in 0-1, got 1.5 at row 0, keypoint 'nose'",
    ),
    "negative likelihood": (with_column(("net", "tail", "likelihood"), -0.1), "likelihood must lie in 0-1, got -0.1"),
    "infinite": (
        with_column(("net", "nose", "x"), np.inf, 2),
        r"finite or NaN, got inf at row 2, keypoint 'nose' \(x\)",
    ),
    "duplicate keypoint": (GOOD.replace("tail", "nose"), "columns must differ, got 'nose x' twice"),
    "no y": (GOOD.replace("x,y,likelihood", "x,q,likelihood"), "must have columns x and y"),
    "one y less": (GOOD.replace("x,y,likelihood", "x,q,likelihood", 1), "keypoint 'nose' must have columns"),
    "two scorers": (GOOD.replace("net", "other", 1), "must come from one scorer"),
    "one frame": (files.csv_text(table=files.TABLE[:1]), "at least 2 frames, got 1"),
    "all missing": (files.csv_text(table=files.TABLE * np.nan), "every position is missing"),
    "cut short": (GOOD[: len(GOOD) - 60], "line 8 must have 10 cells like the header"),
    "frames backwards": (files.csv_text(index=[0, 1, 1, 2, 3]), "frame numbers must grow"),
    "half frames": (files.csv_text(index=[0, 1.5, 2, 3, 4]), "frame numbers must be whole"),
    "sparse frames": (files.csv_text(index=[0, 1, 2, 3, 10**12]), "are spread over 1000000000001 frames"),
    "unknown": ("a,b,c\n1,2,3\n", "known format .*deeplabcut_csv.*sleap_labels.*its first row"),
    "prose": ("Dear diary\n", "must be a pose file in a known format"),
    "decimal comma": (GOOD.replace(",", ";").replace(".", ","), "write a decimal point"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_a_bad_text_file_is_refused_in_words(tmp_path, case):
    text, message = BAD_TEXT[case]
    path = tmp_path / "mouse.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=message) as caught:
        read_poses(path)
    assert "mouse.csv" in str(caught.value)


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(FileError, match="it is UTF-16; save it as"):
        read_poses(path)
    path.write_bytes(GOOD.replace("nose", "nos\u00e9").encode("latin-1"))
    with pytest.raises(FileError, match="must be UTF-8 text, byte"):
        read_poses(path)


def test_an_endless_header_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("scorer," + "x" * (2**22 + 1) + "\n" + GOOD)
    with pytest.raises(FileError, match="its first lines are longer"):
        read_poses(path)


def test_places_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(FileError, match="there is none; check the path"):
        read_poses(tmp_path / "nothing.csv")
    with pytest.raises(FileError, match="it is a folder"):
        read_poses(tmp_path)


def test_options_out_of_range_are_refused(tmp_path):
    files.deeplabcut_csv(tmp_path / "m.csv")
    with pytest.raises(DataError, match="min_confidence must lie in 0-1"):
        read_poses(tmp_path / "m.csv", min_confidence=2)
    with pytest.raises(DataError, match="fps must be a positive number"):
        read_poses(tmp_path / "m.csv", fps=-1)
    with pytest.raises(FileError, match="format must be one of .*got 'dlc'"):
        read_poses(tmp_path / "m.csv", format="dlc")
    with pytest.raises(FileError, match="nothing is left at min_confidence=1; lower it"):
        read_poses(tmp_path / "m.csv", min_confidence=1)


def test_a_threshold_needs_confidences(tmp_path):
    with (tmp_path / "m.npz").open("wb") as file:
        np.savez(file, positions=files.POSITIONS)
    assert "numbered" in read_poses(tmp_path / "m.npz")[0].notes[0]
    with pytest.raises(FileError, match="needs confidences, the file has none"):
        read_poses(tmp_path / "m.npz", min_confidence=0.5)


class Trap:
    """A pickle that would write a file when it is run."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_pickle_in_a_table_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.table_h5(tmp_path / "x.h5", kind=pickle.dumps([Trap()], protocol=0))
    with pytest.raises(FileError, match="names of its columns cannot be trusted.*pickled object"):
        read_poses(tmp_path / "x.h5")
    with pytest.raises(ValueError, match="pickled object"):
        decode_names(pickle.dumps(Trap(), protocol=4))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_harmless_names_are_decoded_like_a_pickle(protocol):
    names = [("s", "nose", "x"), ("s", "nose", "y"), ("s", "n\u00e9", "x")]
    value = [(1, names), {"a": 2, "b": [None, True]}, ()]
    assert decode_names(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "data",
    [b"", b"(lp0", b"garbage", b"a.", b"0.", b"g9\n.", b"(lp0\nI1\ns.", b"K\x01\x86.", b"." * 3, b"N" * (2**24 + 1)],
)
def test_broken_names_are_refused(data):
    with pytest.raises(ValueError, match="."):
        decode_names(data)


def test_a_memo_bomb_costs_nothing():
    assert decode_names(b"(lr\xff\xff\xff\x7f.") == []


def test_objects_in_arrays_are_refused(tmp_path):
    files.fixed_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["df/block0_items_level1"]
        data = file["df"].create_dataset("block0_items_level1", (1,), dtype=h5py.vlen_dtype(np.uint8))
        data[0] = np.frombuffer(pickle.dumps(["nose"]), dtype=np.uint8)
    with pytest.raises(FileError, match="must hold numbers or text, it holds object"):
        read_poses(tmp_path / "x.h5")


def test_links_out_of_the_file_are_refused_even_when_unused(tmp_path):
    files.fixed_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(FileError, match="'elsewhere' is an external link"):
        read_poses(tmp_path / "x.h5")


def test_soft_links_are_not_followed(tmp_path):
    files.fixed_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["hidden"] = file["df/block0_values"]
        del file["df/block0_values"]
        file["df/block0_values"] = h5py.SoftLink("/hidden")
    with pytest.raises(FileError, match="must hold an array '/df/block0_values'"):
        read_poses(tmp_path / "x.h5")


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_bytes_in_other_files_are_refused(tmp_path, kind):
    files.fixed_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["df/block0_values"]
        if kind == "external":
            (tmp_path / "raw").write_bytes(bytes(360))
            file["df"].create_dataset("block0_values", (5, 9), "<f8", external=[(str(tmp_path / "raw"), 0, 360)])
        else:
            layout = h5py.VirtualLayout((5, 9), "<f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a", (5, 9))
            file["df"].create_virtual_dataset("block0_values", layout)
    with pytest.raises(FileError, match="must lie in this file, its bytes lie in another"):
        read_poses(tmp_path / "x.h5")


def test_bombs_are_refused_before_they_are_read(tmp_path):
    files.fixed_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["df/block0_values"]
        file["df"].create_dataset("block0_values", (10**12, 9), "<f8", chunks=(1000, 9))
    with pytest.raises(FileError, match=r"must fit into 4 GiB, it declares 6.71e\+04 GiB"):
        read_poses(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["df/block0_values"]
        file["df"].create_dataset("block0_values", (10**6, 9), "<f8", chunks=(1000, 9))
    with pytest.raises(FileError, match="decompression bomb"):
        read_poses(tmp_path / "x.h5")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("positions.npy", bytes(80 * 2**20))
    with pytest.raises(FileError, match="decompression bomb"):
        read_poses(tmp_path / "x.npz")


@pytest.mark.parametrize("make", [files.fixed_h5, files.table_h5, files.sleap_labels, files.netcdf, files.npz])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_file_cut_short_is_one_clear_error(tmp_path, make, share):
    path = tmp_path / "x"
    make(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FileError, match="x: must"):
        read_poses(path)


@pytest.mark.parametrize("make", [files.fixed_h5, files.table_h5, files.sleap_labels, files.sleap_analysis, files.npz])
def test_flipped_bytes_never_escape_as_another_error(tmp_path, make):
    path = tmp_path / "x"
    make(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=8):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(FileError):
            read_poses(path)


def test_an_h5_without_poses_says_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(FileError, match=r"holds no poses, it has \['weights'\]"):
        read_poses(tmp_path / "x.h5")


def test_a_pickled_array_in_an_npz_is_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.savez(file, positions=np.array([Trap()], dtype=object))
    with pytest.raises(FileError, match="archive of plain arrays"):
        read_poses(tmp_path / "x.npz")
    with (tmp_path / "x.npz").open("wb") as file:
        np.savez(file, x=np.ones(3))
    with pytest.raises(FileError, match="must hold an array 'positions'"):
        read_poses(tmp_path / "x.npz")


def test_a_dataset_with_other_names_is_refused():
    with pytest.raises(FileError, match="must have a variable 'position'"):
        read_poses(files.dataset().rename(position="where"))
    with pytest.raises(FileError, match="position must hold numbers with dims"):
        read_poses(files.dataset().rename(keypoints="joint"))
