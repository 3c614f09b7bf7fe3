import errno
import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import ppgen
from ppgen.errors import FileError
from ppgen.model import Model
from ppgen.models.hmm import HMM
from ppgen.results.rebuild import describe, known_classes, rebuild
from ppgen.storage.folder import read_folder, read_tensors, write_folder, write_tensors

TENSORS = {
    "double": torch.randn(3, 2, dtype=torch.float64),
    "half": torch.randn(4).half(),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "expanded": torch.ones(1).expand(4),
    "scalar": torch.tensor(7),
}
HISTORY = pd.DataFrame({"step": [1, 2], "elbo": [-0.1, 1 / 3], "kept": [True, False], "note": ["", "nan, or not"]})


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "fit", {"a": [1, None, "x"]}, TENSORS, HISTORY)
    return tmp_path / "fit"


def reseal(folder, change):
    """Rewrite the manifest with a valid seal, as someone with this code could."""
    manifest = json.loads((folder / "manifest.json").read_text())["manifest"]
    change(manifest)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"sha256": digest, "manifest": manifest}))


def test_what_was_written_comes_back_bit_for_bit(folder):
    content, tensors, history = read_folder(folder)
    assert content == {"a": [1, None, "x"]}
    assert all(tensors[name].equal(value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items())
    pd.testing.assert_frame_equal(history, HISTORY, check_exact=True)


def test_every_flipped_bit_is_noticed(folder):
    """One bit in each of 40 places of every file, spread evenly; the ends included."""
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        for place in np.linspace(0, len(data) - 1, 40).astype(int):
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(place % 8)
            file.write_bytes(flipped)
            try:
                content, tensors, history = read_folder(folder)
            except FileError:
                continue
            # White space of the manifest's layout carries nothing.
            assert file.name == "manifest.json"
            assert content == {"a": [1, None, "x"]}
            assert all(tensors[name].equal(value) for name, value in TENSORS.items())
        file.write_bytes(data)
    read_folder(folder)


def truncate(folder):
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove_tensors(folder):
    (folder / "tensors.safetensors").unlink()


def put_a_link(folder):
    (folder / "history.csv").rename(folder / "elsewhere.csv")
    (folder / "history.csv").symlink_to(folder / "elsewhere.csv")


def put_foreign_tensors(folder):
    save_file({"weight": torch.ones(2)}, folder / "tensors.safetensors")


def write_another_format(folder):
    reseal(folder, lambda manifest: manifest.update(format=99))


def climb_out(folder):
    reseal(folder, lambda manifest: manifest["files"].update({"../../etc/passwd": {"bytes": 1, "sha256": ""}}))


def declare_a_huge_tensor(folder):
    reseal(folder, lambda manifest: manifest["tensors"]["double"].update(shape=[10**9, 10**9]))


def name_another_tensor(folder):
    reseal(folder, lambda manifest: manifest["tensors"].update(ghost=manifest["tensors"]["double"]))


def leave_out_a_part(folder):
    reseal(folder, lambda manifest: manifest.pop("tensors"))


def edit_by_hand(folder):
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"x"', '"y"'))


def write_text(folder):
    (folder / "manifest.json").write_text("hello")


def write_deep_json(folder):
    (folder / "manifest.json").write_text("[" * 100_000)


def write_a_huge_header(folder):
    data = (2**62).to_bytes(8, "little") + b"{}"
    (folder / "tensors.safetensors").write_bytes(data)
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(folder, lambda manifest: manifest["files"].update({"tensors.safetensors": record}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "must have .* bytes, got .*; it is truncated or replaced"),
        (remove_tensors, "must be a file written by ppgen, got nothing there"),
        (put_a_link, "must be a file written by ppgen, got a link"),
        (put_foreign_tensors, "truncated or replaced|was changed after"),
        (write_another_format, "must have format 1, got 99; read it with the ppgen that wrote it"),
        (climb_out, r"must name tensors.safetensors and history.csv, got \['../../etc/passwd'"),
        (declare_a_huge_tensor, "tensor 'double' .* was changed after it was saved"),
        (name_another_tensor, r"must hold the tensors its manifest names, got a difference in \['ghost'\]"),
        (leave_out_a_part, "must hold files, tensors, history, content"),
        (edit_by_hand, r"manifest.json was changed after it was saved \(its checksum differs\)"),
        (write_text, "must be written by ppgen, got something else"),
        (write_deep_json, "must be written by ppgen, got something else"),
        (write_a_huge_header, "must be a safetensors file, got something else"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_a_folder_that_cannot_be_trusted_is_refused_in_words(folder, spoil, message):
    spoil(folder)
    with pytest.raises(FileError, match=message):
        read_folder(folder)


@pytest.mark.parametrize("make", ["missing", "file", "empty"])
def test_what_is_no_fit_is_refused_in_words(tmp_path, make):
    path = tmp_path / "x"
    if make == "file":
        path.write_text("x")
    if make == "empty":
        path.mkdir()
    with pytest.raises(FileError, match="must be a f(older|ile) written by"):
        ppgen.load(path)


def test_a_folder_with_something_in_it_is_not_overwritten(folder, tmp_path):
    with pytest.raises(FileError, match="must not exist or be empty, got a folder; give a new folder, or overwrite"):
        write_folder(folder, {}, TENSORS, HISTORY)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="give a new folder"):
        write_folder(tmp_path / "work", {}, TENSORS, HISTORY, overwrite=True)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "mine"


def test_a_fit_is_replaced_whole(folder, tmp_path):
    write_folder(folder, {"b": 2}, {}, HISTORY, overwrite=True)
    assert read_folder(folder)[0] == {"b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


def test_a_failed_save_leaves_what_was_there(folder, tmp_path):
    with pytest.raises(FileError, match="attributes of a fit must be JSON values"):
        write_folder(folder, {"bad": object()}, TENSORS, HISTORY, overwrite=True)
    assert read_folder(folder)[0] == {"a": [1, None, "x"]}
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


def test_a_single_file_comes_back_and_is_checked(tmp_path):
    path = tmp_path / "checkpoint" / "a.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    content, tensors = read_tensors(path)
    assert content == {"step": 3}
    assert all(tensors[name].equal(value) for name, value in TENSORS.items())
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(FileError, match="must be written by ppgen"):
        read_tensors(path)


def test_models_are_rebuilt_from_ppgens_own_classes_only():
    assert {"HMM", "Gaussian", "Autoregressive"} <= set(known_classes())
    description, tensors = describe(HMM(["a", "b"], 3, stickiness=2.0))
    again = rebuild(json.loads(json.dumps(description)), tensors, None)
    assert describe(again) == (description, tensors)
    for name in ("os.system", "builtins.eval", "Popen", "__main__.Evil"):
        with pytest.raises(FileError, match=f"'{name}' must be one of ppgen's classes"):
            rebuild({"class": name, "arguments": {"args": ["true"]}}, {}, None)


class Holder(Model):
    dims = {}

    def __init__(self, value=None):
        super().__init__()
        self.value = value

    @property
    def config(self):
        return {"value": self.value}

    def model(self, x, *, u=None, total=None):
        """Nothing."""


@pytest.mark.parametrize(
    "value", [None, 3, 0.1, "text", True, [1, [2, "a"]], {"k": [1.5]}, np.float32(2.0).item(), np.arange(3).tolist()]
)
def test_plain_arguments_come_back(value):
    description, tensors = describe(Holder(value))
    assert rebuild(json.loads(json.dumps(description)), tensors, Holder).value == value


def test_tensors_and_objects_in_a_config_come_back():
    description, tensors = describe(Holder({"weights": torch.arange(3), "inner": HMM(2, 2).emission}))
    stored = {f"config/{key}": value for key, value in tensors.items()}
    again = rebuild(json.loads(json.dumps(description)), stored, Holder).value
    assert again["weights"].equal(torch.arange(3))
    assert again["inner"].config == HMM(2, 2).emission.config


def test_a_config_that_cannot_be_stored_is_refused_in_words():
    with pytest.raises(FileError, match="a model's config must hold numbers, text, .* got function"):
        describe(Holder(lambda: 1))


def test_a_class_that_refuses_its_arguments_is_reported():
    with pytest.raises(FileError, match="HMM cannot be rebuilt from its saved config: HMM: states must be at least 1"):
        rebuild({"class": "HMM", "arguments": {"states": 0, "features": 2}}, {}, None)


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="save: .*state must be written, got: No space left on device"):
        write_tensors(tmp_path / "state", {"a": torch.zeros(1)}, {})
    with pytest.raises(FileError, match="save: .*fit must be written, got: No space left on device"):
        write_folder(tmp_path / "fit", {}, {"a": torch.zeros(1)}, pd.DataFrame())
    assert list(tmp_path.iterdir()) == []
