"""What every test gets: checked shapes, its own seed, an empty parameter store; and the real recordings."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
from shape_checks import install

ROOT = Path(__file__).parents[1]


def _uses_numba(source: Path) -> bool:
    text = source.read_text()
    return "import numba" in text or "from numba" in text


def _checked_modules() -> list[str]:
    """Name the modules whose annotations are run.

    Numba compiles a function's own bytecode, so a module that uses it cannot carry the checks. Packages are left out
    too, because naming one would name all that is inside it; they hold no functions.
    """
    files = (file for file in (ROOT / "ppgen").rglob("*.py") if file.name != "__init__.py")
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if not _uses_numba(file)]


# Before any test imports ppgen: shapes and types in annotations are checked on every call from here on.
install(_checked_modules())


@pytest.fixture(autouse=True)
def random_stream() -> Iterator[None]:
    """Start every test from the same seed; leave the generators and Pyro's store as they were found."""
    from ppgen.rng import private_stream  # here, so that the hook above sees it

    pyro.clear_param_store()
    with private_stream(0):
        yield
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real recordings, named by the environment variable PPGEN_DATA."""
    name = os.environ.get("PPGEN_DATA")
    if not name:
        pytest.skip("PPGEN_DATA is not set: it names the folder of recordings that these tests read")
    folder = Path(name).resolve()
    if not folder.is_dir():
        pytest.fail(f"PPGEN_DATA names {folder}, which is not a folder")
    return folder
