"""Annotations run in tests: every function of the named modules is checked, shapes and types, on every call.

jaxtyping has such a hook too, which checks arguments twice and costs more than most of what is tested.
"""

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

__all__ = ["check", "install"]

WRAPPER = "_runs_its_annotations"  # the name of `check` in a checked module
typed = beartype(conf=BeartypeConf(is_pep484_tower=True))  # for which a whole number is a good float, as Python says


def check(checked: Any) -> Any:  # noqa: ANN401 (a function or a class)
    """Check a function, or what a dataclass is made of, against its annotations on every call."""
    if inspect.isclass(checked):
        if dataclasses.is_dataclass(checked):
            checked.__init__ = check(checked.__init__)
        return checked
    checked.__annotations__ = {k: _known(v, checked.__globals__) for k, v in checked.__annotations__.items()}
    if inspect.isgeneratorfunction(checked):
        return jaxtyped(checked, typechecker=typed)  # which looks at arguments when it is called, not when it is begun
    return _in_a_context(typed(checked)) if _has_shapes(checked) else typed(checked)


def _known(annotation: Any, names: dict[str, Any]) -> Any:  # noqa: ANN401
    """Give the type that is written as a string, or holds one; any type will do where only mypy imports it."""

    def holder() -> None: ...

    holder.__annotations__ = {"held": annotation}
    try:
        return get_type_hints(holder, names, include_extras=True)["held"]
    except NameError:
        return Any


def _has_shapes(function: Callable[..., Any]) -> bool:
    return any("jaxtyping." in str(annotation) for annotation in function.__annotations__.values())


def _in_a_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give each call its own lengths of axes, the same for all its arguments and what it returns."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        __tracebackhide__ = True
        with jaxtyped("context"):
            return function(*args, **kwargs)

    return called


class _Decorate(ast.NodeTransformer):
    """Put ``check`` around every function (nearest to it) and every class (outermost)."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.append(ast.copy_location(ast.Name(WRAPPER, ast.Load()), node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name(WRAPPER, ast.Load()), node))
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> Any:  # noqa: ANN401 (past the cache of compiled files, which knows no checks)
        path = self.get_filename(fullname)
        tree = _Decorate().visit(ast.parse(decode_source(self.get_data(path)), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: Any) -> None:  # noqa: ANN401
        setattr(module, WRAPPER, check)
        super().exec_module(module)


@dataclasses.dataclass(frozen=True)
class _Finder:
    modules: frozenset[str]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self.modules else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(modules: Sequence[str]) -> None:
    """Check these modules, from when they are imported."""
    sys.meta_path.insert(0, _Finder(frozenset(modules)))
