"""What the repository promises about itself: nothing to learn here about a model, much about what may be committed."""

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "ppgen").rglob("*.py"))
SHIPPED = [*SOURCES, *sorted((ROOT / "case_studies").rglob("*.py"))]
MODELS = [file for file in sorted((ROOT / "ppgen" / "models").glob("*.py")) if not file.name.startswith("_")]
SLOW_IMPORTS = ("arviz_plots", "arviz_stats", "matplotlib", "seaborn")
UNPICKLING = re.compile(
    r"((pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|torch|yaml)\.(load|loads|open|full_load|unsafe_load)"
    r"|(.+\.)?(read_hdf|read_pickle))"
)
PICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


def name_of(file):
    return str(file.relative_to(ROOT))


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unpickling(source):
    """Lines of ``source`` that would execute what a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = UNPICKLING.fullmatch(ast.unparse(node.func))
            allowed = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            if called or allowed:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in PICKLERS:
            yield from [node.lineno for alias in node.names if alias.name.startswith(("load", "open"))]


@pytest.mark.parametrize("file", MODELS, ids=name_of)
def test_a_model_has_a_test_and_a_page(file):
    assert (ROOT / "tests" / "models" / f"test_{file.stem}.py").is_file()
    assert (ROOT / "docs" / "models" / f"{file.stem}.md").is_file()


@pytest.mark.parametrize("file", SHIPPED, ids=name_of)
def test_no_file_is_trusted_to_run_code(file):
    assert list(unpickling(file.read_text())) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle; pickle.load(f)",
        "import torch; torch.load('x', weights_only=True)",
        "from joblib import load",
        "import numpy; numpy.load('x', allow_pickle=True)",
        "import numpy; numpy.load('x', allow_pickle=flag)",
        "import pandas as pd; pd.read_hdf('x')",
        "import yaml; yaml.load(text, Loader=yaml.FullLoader)",
    ],
)
def test_a_call_that_runs_code_from_a_file_is_seen(planted):
    assert list(unpickling(planted)) == [1]


def test_harmless_loading_is_not_taken_for_it():
    assert list(unpickling("numpy.load(f); json.load(f); yaml.safe_load(f); numpy.load(f, allow_pickle=False)")) == []


@pytest.mark.parametrize("file", SHIPPED, ids=name_of)
def test_people_are_not_refused_by_assert(file):
    assert [node.lineno for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_a_module_says_what_it_is_and_what_it_exports(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "a module starts with a docstring"
    definitions = (ast.FunctionDef, ast.ClassDef)
    public = {node.name for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")}
    exported = any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in tree.body)
    assert exported or not public or file.name.startswith("_"), f"__all__ is missing beside {sorted(public)}"


@pytest.mark.parametrize("file", [file for file in SOURCES if not file.name.startswith("_")], ids=name_of)
def test_what_is_exported_is_there_and_documented(file):
    module = importlib.import_module(module_of(file))
    for name in getattr(module, "__all__", ()):
        exported = getattr(module, name)
        if inspect.isclass(exported) and exported.__module__ == module.__name__:
            public = [member for member in vars(exported) if not member.startswith("_")]
            routines = [m for m in public if inspect.isroutine(getattr(exported, m)) or _is_property(exported, m)]
            undocumented = [
                member for member in routines if not inspect.getdoc(inspect.getattr_static(exported, member))
            ]
            assert undocumented == [], f"{name}: neither these methods nor those they override have a docstring"
        if inspect.isclass(exported) or inspect.isfunction(exported):
            assert inspect.getdoc(exported), f"{name} has no docstring"


def _is_property(owner, member):
    return isinstance(inspect.getattr_static(owner, member), property)


def test_every_package_stands_in_a_layer():
    with (ROOT / "pyproject.toml").open("rb") as opened:
        contracts = tomllib.load(opened)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = set(re.findall(r"ppgen\.(\w+)", " ".join(layers)))
    here = {file.relative_to(ROOT / "ppgen").parts[0].removesuffix(".py") for file in SOURCES} - {"__init__"}
    assert here <= named


def test_importing_ppgen_leaves_the_slow_libraries_alone():
    program = f"import sys, ppgen; print([name for name in {SLOW_IMPORTS} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_no_path_of_somebodys_machine_is_committed():
    # Only a folder of a person's own home or of a build machine: /tmp and /dev are everybody's.
    personal = re.compile(r"(?<![\w.])/(home|Users|root|work)/\w")
    folders = [ROOT / name for name in ("ppgen", "tests", "case_studies", "benchmarks", "docs")]
    texts = [f for folder in folders for f in folder.rglob("*") if f.suffix in {".py", ".md", ".toml", ".csv", ".json"}]
    texts += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")]
    assert [name_of(file) for file in texts if file != Path(__file__) and personal.search(file.read_text())] == []


@pytest.mark.parametrize("link", ["models", "inference"])
def test_the_rooms_at_the_top_are_those_of_the_package(link):
    top = ROOT / link
    if not top.exists():
        pytest.skip("a checkout without symbolic links works too")
    # Where links are not supported, git writes a file that holds the target's name.
    assert top.read_text().strip() == f"ppgen/{link}" if top.is_file() else top.resolve() == ROOT / "ppgen" / link


def test_pins_hold_every_dependency():
    with (ROOT / "pyproject.toml").open("rb") as opened:
        project = tomllib.load(opened)["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    assert names <= set(pins)
    assert not any("+" in version for version in pins.values()), "a local version exists on one machine only"


def test_every_name_is_defined():
    """Axes of jaxtyping's annotations are names to the linters, which are told to pass over them: here they do not."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "F821", "--ignore-noqa", "--no-cache", "--isolated"]
    asked = [*command, "--output-format", "json", "ppgen", "case_studies"]
    found = json.loads(subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout)
    bad = [f"{one['filename']}:{one['location']['row']}: {one['message']}" for one in found if not _is_axis(one)]
    assert not bad
    assert found, "annotations have axes; the linter must have been run"


def _is_axis(one):
    """Whether what the linter found lies inside a text of its line."""
    line = Path(one["filename"]).read_text().splitlines()[one["location"]["row"] - 1]
    return line[: one["location"]["column"] - 1].count('"') % 2 == 1
