"""How a command line ends: in one message, never a traceback."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppgen.errors import PpgenError

if TYPE_CHECKING:
    from cyclopts import App

__all__ = ["run"]

INTERRUPTED = 130


def run(app: "App", name: str, arguments: Sequence[str] | None, smaller: str) -> int:
    """Run ``app``; 0 when all went well, 2 with one message when not, 130 when interrupted.

    ``smaller`` says what to do where memory does not suffice.
    """
    from cyclopts import CycloptsError

    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (PpgenError, CycloptsError) as error:
        return _complain(name, str(error), 2)
    except OSError as error:
        return _complain(name, f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except MemoryError:
        return _complain(name, f"not enough memory; {smaller}", 2)
    except KeyboardInterrupt:
        return _complain(name, "interrupted; nothing was written", INTERRUPTED)
    return 0


def _complain(name: str, message: str, code: int) -> int:
    print(message if message.startswith(f"{name}: ") else f"{name}: {message}", file=sys.stderr)
    return code
