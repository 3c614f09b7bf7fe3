"""Column names that PyTables wrote as a pickle, decoded without running it.

A pickle is a program. This reads its opcodes with :mod:`pickletools`, which executes nothing, and knows only those
that build lists, tuples, dicts, strings, numbers and truth values; anything else is refused.
"""

import pickletools
from collections.abc import Callable
from typing import Any

__all__ = ["decode_names"]

SIZE_LIMIT = 2**24
_MARK = object()


def decode_names(data: bytes) -> Any:  # noqa: ANN401 - nested lists, tuples and strings
    """The nested lists, tuples, dicts, strings and integers that a harmless pickle describes.

    Raises
    ------
    ValueError : the bytes are too long, not a pickle, or ask for anything but those types.
    """
    if len(data) > SIZE_LIMIT:
        raise ValueError(f"{len(data)} bytes of pickled names are more than {SIZE_LIMIT}")
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"the pickled names are malformed ({error})") from error
    raise ValueError("the pickled names end early")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:  # noqa: ANN401
    if name in LITERALS:
        stack.append(argument)
    elif name in BUILDERS:
        BUILDERS[name](stack)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name not in ("PROTO", "FRAME"):
        raise ValueError(f"a pickled object (opcode {name}) stands where column names must be")


def _since_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _append(stack: list[Any]) -> None:
    item = stack.pop()
    stack[-1].append(item)


def _appends(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].extend(items)


def _set(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _set_all(stack: list[Any]) -> None:
    items = _since_mark(stack)
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _last(count: int) -> Callable[[list[Any]], None]:
    def build(stack: list[Any]) -> None:
        if len(stack) < count:
            raise IndexError("a tuple needs more items than there are")
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)

    return build


LITERALS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
LITERALS |= {"STRING", "BINSTRING", "SHORT_BINSTRING"}
LITERALS |= {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "NONE"}
BUILDERS: dict[str, Callable[[list[Any]], None]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "DICT": lambda stack: stack.append(dict(zip(*[iter(_since_mark(stack))] * 2, strict=True))),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set,
    "SETITEMS": _set_all,
    "NEWTRUE": lambda stack: stack.append(True),
    "NEWFALSE": lambda stack: stack.append(False),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
}
