"""Checkpoints of every engine: one class says what may go on from what."""

import re

import pytest
import torch

from ppgen.errors import FileError
from ppgen.storage.checkpoint import Checkpoint

IDENTITY = {"model": "a line", "data": b"\x00\x01"}


def checkpoint(folder, **changed):
    return Checkpoint("vb", folder / "vb.safetensors", IDENTITY | changed, beside=[".bin"])


def test_a_run_goes_on_from_what_it_saved(tmp_path):
    assert checkpoint(tmp_path / "new").load() is None
    checkpoint(tmp_path / "new").save({"a": torch.arange(3)}, {"seed": 1})
    content, tensors = checkpoint(tmp_path / "new").load()
    assert content["seed"] == 1
    assert tensors["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", list(IDENTITY))
def test_another_run_is_refused_and_told_what_differs(name, tmp_path):
    checkpoint(tmp_path).save({})
    with pytest.raises(FileError, match=f"vb: checkpoint {re.escape(str(tmp_path))} must hold .* its {name} differ"):
        checkpoint(tmp_path, **{name: "another"}).load()


@pytest.mark.parametrize("position", [3, -3])
def test_a_flipped_bit_is_refused(position, tmp_path):
    mine = checkpoint(tmp_path)
    mine.save({"a": torch.arange(3)})
    data = bytearray(mine.path.read_bytes())
    data[position] ^= 4
    mine.path.write_bytes(data)
    with pytest.raises(FileError, match=r"vb: checkpoint .* cannot be read .*; delete it to start anew"):
        mine.load()


def test_files_that_no_run_wrote_are_left_alone(tmp_path):
    for own in ("draws.bin", ".vb.safetensors.ppgen-new", ".ppgen-lock"):
        (tmp_path / own).write_bytes(b"")
    assert checkpoint(tmp_path).load() is None
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        FileError, match=r"must be empty or hold a checkpoint, got \['notes.txt'\]; name another folder"
    ):
        checkpoint(tmp_path).load()
