"""The code on the pages runs as it stands, from the first block to the last."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["models/gmm", "models/lds", "inference/vb"]  # those of the HMM and of your own model have tests of their own


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.S | re.M)
    names = {"print": lambda *_: None}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)  # noqa: S102
    assert len(blocks) > 0
