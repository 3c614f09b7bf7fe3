"""Saved models that ask for more than was saved."""

import hashlib
import json

import pytest

import ppgen
from ppgen.errors import FileError


@pytest.mark.parametrize("change", [{"states": 10**9}, {"states": 10**5}, {"features": 10**7}])
def test_a_config_that_asks_for_more_than_was_saved_is_refused_before_it_takes_memory(tmp_path, hmm_fit, change):
    hmm_fit.save(tmp_path / "fit")
    file = tmp_path / "fit" / "manifest.json"
    manifest = json.loads(file.read_text())["manifest"]
    arguments = manifest["content"]["model"]["arguments"]
    if "states" in change:
        arguments["states"] = change["states"]
    else:
        arguments["emission"]["arguments"]["features"] = change["features"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, "manifest": manifest}))
    with pytest.raises(FileError, match="load: .*(as large as its saved tensors|must have the shapes)"):
        ppgen.load(tmp_path / "fit")
