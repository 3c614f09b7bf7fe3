"""Code on the pages runs as it stands, block after block of a page; commands are read as far as that goes."""

import doctest
import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
KINDS = {"python", "sh", "text", "math"}  # text is a sketch or a picture: nobody runs it
LONG = {"docs/inference/calibration.md"}  # a thousand fits of a hidden Markov model
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.S | re.M)
TESTED = [str(file.relative_to(ROOT)) for file in ROOT.glob("ppgen/**/*.py") if ">>> " in file.read_text()]


def blocks(page, kind):
    """Blocks of one kind, each behind as many empty lines as stand before it on the page."""
    text = (ROOT / page).read_text()
    return ["\n" * text[: found.start(2)].count("\n") + found[2] for found in FENCE.finditer(text) if found[1] == kind]


def run(page):
    """Names that the page's own code leaves behind, and what it printed."""
    printed = []
    names = {"print": lambda *values, sep=" ": printed.append(sep.join(map(str, values)))}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    plt.close("all")
    return names, printed


def with_code(kind):
    marks = {page: pytest.mark.slow for page in LONG} if kind == "python" else {}
    return [pytest.param(page, marks=marks.get(page, ())) for page in PAGES if blocks(page, kind)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    assert {found[1] for found in FENCE.finditer((ROOT / page).read_text())} <= KINDS
    assert len(re.findall("^```", (ROOT / page).read_text(), re.M)) == 2 * len(FENCE.findall((ROOT / page).read_text()))


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # arviz_stats.compare, of its own calls
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # ArviZ's word on a rough guide, by chance of its draws
@pytest.mark.parametrize("page", with_code("python"))
def test_every_block_of_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names, printed = run(page)
    if page == "docs/models/hmm.md":
        assert names["fit"].attrs["converged"]
    if page == "docs/models/your_own.md":
        assert printed[0].startswith("No problem found: 10 of 10 checks passed.")


def check_make(words):
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    assert [word for word in words if "=" not in word and word not in targets] == []


def check_python(words):
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
        return
    app = runpy.run_path(str(ROOT / words[0]))["app"]
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def check_pip(words):
    assert words[0] == "install"
    assert all((ROOT / name).is_file() for flag, name in zip(words, words[1:], strict=False) if flag == "-c")


COMMANDS = {"make": check_make, "python": check_python, "pip": check_pip}


def check(line):
    """Fail unless the command, its script and its options are there."""
    command, *words = shlex.split(line, comments=True)
    COMMANDS[Path(command).name](words)


@pytest.mark.parametrize("page", with_code("sh"))
def test_every_command_of_a_page_is_there(page):
    for line in "\n".join(blocks(page, "sh")).splitlines():
        if line.strip():
            check(line)


@pytest.mark.parametrize(
    "planted",
    [
        "make tset",
        "python -m vnev .venv",
        "python case_studies/syllable.py fit --demo --out x",
        "python case_studies/syllables.py fitt --demo --out x",
        "python case_studies/syllables.py fit --demo --output x",
        "pip install -c constraint.txt -e .",
        "conda install ppgen",
    ],
)
def test_a_command_that_is_not_there_is_seen(planted):
    with pytest.raises(Exception):  # noqa: B017, PT011 (each tool refuses in its own way)
        check(planted)


@pytest.mark.parametrize("file", TESTED)
def test_examples_in_docstrings_give_what_they_say(file):
    module = importlib.import_module(".".join(Path(file).with_suffix("").parts))
    assert doctest.testmod(module).failed == 0
