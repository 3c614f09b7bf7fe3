"""What lies in a folder if the process dies between any two things it does there."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

import ppgen
from ppgen.errors import FileError
from ppgen.storage import lock
from ppgen.storage.folder import as_path, read_folder, write_folder
from ppgen.storage.lock import LOCK, held

HISTORY = pd.DataFrame({"step": [1, 2], "elbo": [-0.1, 1 / 3]})
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.truncate"}
watching = []


def _photograph(event, _):
    """Copy the folder that is watched before anything is done to a file."""
    if event in TOUCHES and watching:
        source, album = watching.pop()
        shutil.copytree(source, album / f"{len(os.listdir(album)):03}", symlinks=True)
        watching.append((source, album))


sys.addaudithook(_photograph)


def photographs(place, album, act):
    """What is in ``place`` before each thing that ``act`` does to the disk: all that a killed process can leave."""
    album.mkdir()
    watching.append((place, album))
    try:
        act()
    finally:
        watching.clear()
    return sorted(album.iterdir())


def write(folder, value, **options):
    write_folder(folder, {"value": value}, {"a": torch.full((3,), float(value))}, HISTORY, **options)


def value(folder):
    content, tensors, _ = read_folder(folder)
    assert (tensors["a"] == content["value"]).all()
    return content["value"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_process_killed_at_any_point_of_an_overwriting_save_leaves_the_old_fit_or_the_new_one(place, tmp_path):
    write(place / "fit", 1)
    (place / "fit" / "notes.txt").write_text("mine")
    found = photographs(place, tmp_path / "album", lambda: write(place / "fit", 2, overwrite=True))
    values = [value(photo / "fit") for photo in found]
    assert len(found) > 8
    assert values == sorted(values)
    assert set(values) == {1, 2}
    for photo in found:  # and the next save goes on from there
        write(photo / "fit", 3, overwrite=True)
        assert value(photo / "fit") == 3
        assert (photo / "fit" / "notes.txt").read_text() == "mine"
        left = {path.name.split("-")[0] for path in (photo / "fit").iterdir()} - {"notes.txt", "manifest.json"}
        assert left <= {"tensors", "history", "tensors.safetensors", "history.csv"}


def test_a_process_killed_at_any_point_of_a_first_save_leaves_nothing_or_the_fit(place, tmp_path):
    found = photographs(place, tmp_path / "album", lambda: write(place / "fit", 1))
    assert len(found) > 5
    for photo in found:
        if (photo / "fit").exists():
            assert value(photo / "fit") == 1
        else:
            write(photo / "fit", 2)


def test_a_folder_holds_only_the_files_of_its_last_save(place):
    for number in range(4):
        write(place / "fit", number, overwrite=True)
        assert value(place / "fit") == number
        assert len(list((place / "fit").iterdir())) == 3
    write(place / "fit", 3, overwrite=True)  # the same fit again
    assert value(place / "fit") == 3
    assert len(list((place / "fit").iterdir())) == 3


def test_files_that_are_not_the_fits_own_stay_where_they_are(place):
    write(place / "fit", 1)
    (place / "fit" / "notes.txt").write_text("mine")
    (place / "fit" / "figures").mkdir()
    (place / "fit" / "figures" / "a.svg").write_text("also mine")
    write(place / "fit", 2, overwrite=True)
    assert value(place / "fit") == 2
    assert (place / "fit" / "notes.txt").read_text() == "mine"
    assert (place / "fit" / "figures" / "a.svg").read_text() == "also mine"


@pytest.mark.parametrize("manifest", ['{"name": "my app"}', '{"format": 1, "states": []}', "hello", "", "changed"])
def test_a_folder_whose_manifest_is_not_a_whole_fits_is_never_replaced(place, manifest):
    if manifest == "changed":
        write(place, 1)
        manifest = (place / "manifest.json").read_text().replace('"value": 1', '"value": 2')
    (place / "manifest.json").write_text(manifest)
    (place / "src").mkdir()
    (place / "src" / "main.js").write_text("years of work")
    with pytest.raises(FileError, match="save: overwrite=True replaces a whole fit, but .* holds none"):
        write(place, 3, overwrite=True)
    assert (place / "src" / "main.js").read_text() == "years of work"
    assert (place / "manifest.json").read_text() == manifest


def test_a_link_to_a_folder_is_followed(place):
    write(place / "fit", 1)
    (place / "link").symlink_to(place / "fit")
    with pytest.raises(FileError, match="must not exist or be empty, got a folder"):
        write(place / "link", 2)
    write(place / "link", 2, overwrite=True)
    assert (place / "link").is_symlink()
    assert value(place / "fit") == value(place / "link") == 2
    (place / "later").symlink_to(place / "new")
    write(place / "later", 3)
    assert value(place / "new") == 3
    assert sorted(path.name for path in place.iterdir()) == ["fit", "later", "link", "new"]


@pytest.mark.parametrize("failing", range(1, 9))
def test_a_save_that_the_disk_refuses_leaves_the_old_fit_and_no_others(place, monkeypatch, failing):
    """Every flush to disk in turn is the one that fails."""
    write(place / "fit", 1)
    before = sorted(path.name for path in (place / "fit").iterdir())
    honest, calls = os.fsync, iter(range(1, 100))

    def refuse(descriptor):
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    said = contextlib.nullcontext() if failing > 6 else pytest.raises(FileError, match="got: No space left on device")
    with said:
        write(place / "fit", 2, overwrite=True)
    names = sorted(path.name for path in (place / "fit").iterdir())
    assert value(place / "fit") == (1 if names == before else 2)
    assert len(names) == 3 or failing == 6


def test_a_folder_as_older_versions_wrote_it_is_read(place):
    """Plain names of both files, and nothing else in the manifest than before."""
    write(place / "fit", 1)
    assert sorted(path.name for path in (place / "fit").iterdir()) == [
        "history.csv", "manifest.json", "tensors.safetensors",
    ]  # fmt: skip
    manifest = json.loads((place / "fit" / "manifest.json").read_text())["manifest"]
    assert set(manifest) == {"format", "versions", "files", "tensors", "history", "content"}
    assert set(manifest["files"]) == {"tensors.safetensors", "history.csv"}


@pytest.mark.parametrize("folder", [None, "", 3, b"fit"])
def test_what_is_no_path_is_refused_in_words(folder):
    with pytest.raises(FileError, match="load: the folder must be a path, got"):
        as_path("load", folder)
    if folder == "":
        with pytest.raises(FileError, match="save: the folder must be a path, got ''; pass its name"):
            write(folder, 1)
        with pytest.raises(FileError, match="load: the folder must be a path, got ''; pass its name"):
            ppgen.load(folder)


def test_a_folder_is_held_by_one_run_at_a_time(place):
    with held(place, "mcmc"):
        words = rf"svi: .* one run at a time, process {os.getpid()} on .* is writing there; wait"
        with pytest.raises(FileError, match=words), held(place, "svi"):
            pass
        with held(place / "another", "svi"):
            pass
    with held(place, "svi"):
        pass
    assert list(place.iterdir()) == []
    with held(None, "svi"):
        pass


def test_a_lock_that_nobody_has_holds_nobody_up(place):
    (place / LOCK).write_text("process 1 on elsewhere")
    with held(place, "mcmc"):
        pass
    assert not (place / LOCK).exists()


@pytest.mark.slow
def test_what_a_killed_run_left_holds_nobody_up(place):
    program = (
        "import os, sys; from pathlib import Path; from ppgen.storage.lock import held\n"
        "with held(Path(sys.argv[1]), 'mcmc'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(place)], check=False).returncode == -9
    assert (place / LOCK).exists()
    with held(place, "mcmc"):
        pass
    assert not (place / LOCK).exists()


def test_a_file_system_without_locks_is_said(place, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="mcmc: .* cannot be locked on this file system"), held(place, "mcmc"):
        pass
