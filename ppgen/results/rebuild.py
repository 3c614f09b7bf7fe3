"""Models as data: the arguments that rebuild a model, as JSON and tensors.

Only ppgen's own classes are rebuilt, from a table made of ppgen's own modules. A name in a file is looked up in that
table and nowhere else; it is never imported.
"""

import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppgen.errors import FileError
from ppgen.model import Model
from ppgen.programs.program import Function, owner, private

__all__ = ["Given", "describe", "program_state", "rebuild"]

Given = Model | type[Model] | Callable[..., Any] | None
"""What `ppgen.load` is given to rebuild a model with."""

PACKAGES = ("ppgen.models", "ppgen.families", "ppgen.emissions", "ppgen.durations")


def describe(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Class name and arguments of ``model`` as JSON, and the tensors among them.

    A model without ``config`` is described by its name alone; loading it then needs an instance. A plain function is
    described by its name and its arguments but the first.

    Raises
    ------
    FileError : an argument that is no plain value.
    """
    tensors: dict[str, Tensor] = {}
    if isinstance(model, Function):
        return _describe_function(model, tensors), tensors
    try:
        return _encode(model, tensors), tensors
    except NotImplementedError:
        return {"class": type(model).__name__, "arguments": None}, {}


def rebuild(description: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Given) -> Model:
    """The model that `describe` described; ``model`` is the user's own class, or an instance."""
    name = description.get("class")
    if "function" in description and not isinstance(model, Model):
        return _rebuild_function(description, tensors, model)
    if isinstance(model, Model):
        _check_instance(model, description, tensors)
        return model
    if model is not None and (not isinstance(model, type) or model.__name__ != name):
        came = getattr(model, "__name__", type(model).__name__)
        raise FileError(f"load: model must be the class {name} that was saved, got {came}")
    if description.get("arguments") is None:
        raise FileError(f"load: {name} was saved without its config; pass load(folder, model=an instance of it)")
    own = {} if model is None else {model.__name__: model}
    built = _decode(description, tensors, own)
    if not isinstance(built, Model):
        raise FileError(f"load: the folder must hold the fit of a model, got one of {name}")
    return built


def program_state(model: Model) -> dict[str, Tensor]:
    """Parameters and buffers of a model by name; of a function also those of the module whose method it is."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    module = owner(model.function) if isinstance(model, Function) else None
    if module is not None and not isinstance(getattr(model, "function", None), nn.Module):
        state |= {f"owner.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    return state


def _describe_function(model: Function, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A function by its name, the values around it and its further arguments; tensors go to ``tensors``."""
    rest = []
    for number, value in enumerate(model.rest, 2):
        try:
            rest.append(_encode(torch.as_tensor(value) if isinstance(value, np.ndarray) else value, tensors))
        except (FileError, TypeError) as error:
            raise FileError(
                f"save: arguments of a function must be numbers, text, lists, dicts, arrays and tensors, got "
                f"{type(value).__name__} as argument {number} of {_name(model.function)}; fit a function without it"
            ) from error
    return {
        "class": "Function",
        "function": _name(model.function),
        "captured": _captured(model.function),
        "arguments": {"rest": rest, "takes_data": model.takes_data, "data_dims": list(model.data_dims)},
        "axes": {"dims": {site: list(axes) for site, axes in model.dims.items()}, "coords": dict(model.coords)},
    }


def _rebuild_function(description: Mapping[str, Any], tensors: Mapping[str, Tensor], function: Any) -> Function:  # noqa: ANN401
    name = description["function"]
    if function is None or isinstance(function, type) or _name(function) != name:
        came = "none" if function is None else _name(function)
        raise FileError(f"load: model must be the function {name} that was fitted, got {came}; pass model={name}")
    _check_captured(name, description.get("captured", {}), _captured(function))
    arguments = description["arguments"]
    rest = tuple(_decode(value, tensors, {}) for value in arguments["rest"])
    axes = description.get("axes", {"dims": {}, "coords": {}})  # fits saved before had none
    args = (None, *rest) if arguments["takes_data"] else ()
    model = Function(private(function), args, axes["dims"], axes["coords"])
    model.__dict__["data_dims"] = tuple(arguments["data_dims"])
    return model


def _captured(function: object) -> dict[str, str]:
    """Numbers, text and arrays that a function takes from around it, by name; an array by its digest."""
    if not inspect.isfunction(function):
        return {}
    around = inspect.getclosurevars(function)
    found = {name: _summary(value) for name, value in sorted({**around.globals, **around.nonlocals}.items())}
    return {name: value for name, value in found.items() if value is not None}


def _summary(value: object) -> str | None:
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if not isinstance(value, Tensor | np.ndarray) or value.dtype == object:
        return None
    array = np.ascontiguousarray(value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value)
    return f"{array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _check_captured(name: str, saved: Mapping[str, str], captured: Mapping[str, str]) -> None:
    for key in sorted(saved.keys() & captured.keys()):
        if saved[key] != captured[key]:
            raise FileError(
                f"load: {name} was fitted with {key}={saved[key]} from around it, got {captured[key]}; pass the "
                "function with the values it had"
            )


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


@cache
def known_classes() -> dict[str, type]:
    """Ppgen's own classes with a ``config``, by name."""
    classes: dict[str, type] = {}
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            loaded = importlib.import_module(module.name)
            for name in getattr(loaded, "__all__", ()):
                value = getattr(loaded, name)
                if inspect.isclass(value) and not inspect.isabstract(value) and hasattr(value, "config"):
                    classes[name] = value
    return classes


def _check_instance(model: Model, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    found, values = describe(model)
    same = found == description and all(values[key].equal(tensors[f"config/{key}"]) for key in values)
    if not same:
        saved = f"{description.get('class')} with {description.get('arguments')}"
        raise FileError(
            f"load: model must be the one that was saved ({saved}), got {found['class']} with {found['arguments']}"
        )


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 (JSON)
    """A value in JSON; its tensors go to ``tensors``, by number."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _encode(item, tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple | range | np.ndarray):
        return [_encode(item, tensors) for item in value]
    if hasattr(value, "config"):
        arguments = {name: _encode(item, tensors) for name, item in value.config.items()}
        return {"class": type(value).__name__, "arguments": arguments}
    raise FileError(
        f"save: a model's config must hold numbers, text, lists, dicts, tensors and objects with a config, "
        f"got {type(value).__name__}"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, list):
        return [_decode(item, tensors, own) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        return tensors[f"config/{value['tensor']}"]
    if "mapping" in value:
        return {name: _decode(item, tensors, own) for name, item in value["mapping"].items()}
    return _construct(value, tensors, own)


def _construct(value: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> Any:  # noqa: ANN401
    name = str(value.get("class"))
    chosen = own.get(name) or known_classes().get(name)
    if chosen is None:
        raise FileError(
            f"load: {name!r} must be one of ppgen's classes, but it is not; if it is yours, pass load(folder, "
            "model=its class or an instance)"
        )
    arguments = {key: _decode(item, tensors, own) for key, item in value["arguments"].items()}
    try:
        return chosen(**arguments)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise FileError(f"load: {name} cannot be rebuilt from its saved config: {error}") from error
