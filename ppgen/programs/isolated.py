"""A private Pyro for every run of a program."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import pyro
import torch
from pyro.poutine.messenger import Messenger

from ppgen.distributions.lkj import draw_cholesky
from ppgen.errors import PpgenError
from ppgen.programs.plates import plate_in_words
from ppgen.programs.scores import innermost

__all__ = ["isolated"]


@contextmanager
def isolated() -> Iterator[None]:
    """Run with a private Pyro: an empty parameter store, parameters local to their modules, and no validation.

    Without it two models in one process can share parameters. All is as before on exit.
    """
    store, local = pyro.get_param_store().scope(), pyro.settings.context(module_local_params=True)
    with store, local, pyro.validation_enabled(False), _RightDraws():
        try:
            yield
        except PpgenError as error:
            error.args = (str(error).split("\nTrace Shapes:")[0],)  # Pyro's, which has no place in our messages
            raise
        except ValueError as error:
            message = plate_in_words(error)
            raise message from (None if message is error else error)


@final
class _RightDraws(Messenger):
    """Draws a correlation matrix's Cholesky factor as its density says, where torch's own sampler does not."""

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        fn = innermost(msg["fn"])
        if msg["value"] is None and not msg["is_observed"] and isinstance(fn, torch.distributions.LKJCholesky):
            shape = msg["fn"].shape()[:-2]
            msg["value"] = draw_cholesky(fn.concentration.expand(shape), fn.dim)
