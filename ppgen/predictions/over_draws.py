r"""An answer about one draw of the parameters, for all draws at once.

The answer is a function of one draw, written without a thought of the others; ``torch.func.vmap`` turns it into one
of many. So the layout of a program stays its author's: event dimensions, plates and indexing mean what they say, where
broadcasting draws against them (as Pyro's ``Predictive(parallel=True)`` does) mistakes one for the other. Random
numbers differ between draws. Draws go through in chunks of bounded memory.

A program that looks at its values (``if``, ``.item()``, numpy) cannot be run so, nor can one with an operator that has
no rule for it; then each draw is a run of its own. The answers have the same distribution, but other random numbers.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from ppgen.errors import DataError, PpgenError
from ppgen.programs.mapped import mapped
from ppgen.programs.written import Written

__all__ = ["CHUNK_BYTES", "NOTHING", "Theta", "at", "gather", "nothing", "over_draws"]

Theta = Mapping[str, Tensor]
"""One draw of every parameter, site -> value."""

NOTHING = ""  # the name of draws of no site

Answer = Callable[[Theta], Any]
"""What is asked of one draw: a tensor, or a dict of tensors."""

CHUNK_BYTES = 1 << 27  # what the results of all operators of one chunk may take together, were none ever freed

VMAP_WARNINGS = ("There is a performance drop", "An output with one or more elements was resized")
UNABLE = (RuntimeError, TypeError, NotImplementedError, ValueError)  # what vmap raises where it cannot

log = logging.getLogger(__name__)
_told: set[str] = set()


def nothing(n: int) -> dict[str, Tensor]:
    """``n`` draws of no site, for answers that need none but a number."""
    return {NOTHING: torch.zeros(n, 0)}


def at(draws: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Draw number ``index`` of {site: (S, ...)}."""
    return {site: value[index] for site, value in draws.items()}


def gather(
    answer: Answer,
    draws: Mapping[str, Tensor],
    *,
    keep: Tensor | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Any:  # noqa: ANN401 (what the answer is)
    """Every answer of `over_draws` in one tensor (S, ...), or one dict of them.

    ``keep`` chooses entries of each answer, and ``done`` is called with the number of draws that a chunk answered.
    """
    whole: Any = None
    start, total = 0, _count(draws)
    for part in over_draws(answer, draws):
        chosen = part if keep is None else tree_map(lambda leaf: leaf[:, keep], part)
        if whole is None:
            whole = tree_map(lambda leaf: leaf.new_empty(total, *leaf.shape[1:]), chosen)
        count = len(tree_leaves(chosen)[0])
        tree_map(partial(_write, start), whole, chosen)
        start += count
        done(count)
    return whole


def _write(start: int, whole: Tensor, part: Tensor) -> None:
    whole[start : start + len(part)] = part


def over_draws(answer: Answer, draws: Mapping[str, Tensor]) -> Iterator[Any]:
    """Answer for each of the draws, chunk by chunk in their order.

    Parameters
    ----------
    answer : a function of one draw {site: value} without a gradient.
    draws : {site: (S, ...)}.

    Yields
    ------
    Tensor or dict of them, (c, ...) for the next c draws.

    Notes
    -----
    A chunk holds one draw at least, and else as many that the results of all operators of its run, were none of them
    ever freed, take 128 MB at most; the first draw goes through alone to see that. With one draw nothing is vectorised.
    """
    count = _count(draws)
    first, size = (None, 1) if count == 1 else _first(answer, draws)
    if first is None:
        yield from _one_by_one(answer, draws, count)
        return
    yield first
    for start in range(1, count, size):
        yield _vectorized(answer, {site: value[start : min(start + size, count)] for site, value in draws.items()})


def _count(draws: Mapping[str, Tensor]) -> int:
    counts = {site: len(value) for site, value in draws.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise DataError(
            f"over_draws: every site must have as many draws, one at least, got {counts or 'no site'}; ask for more"
        )
    return next(iter(counts.values()))


def _one_by_one(answer: Answer, draws: Mapping[str, Tensor], count: int) -> Iterator[Any]:
    for index in range(count):
        yield _row(answer(at(draws, index)))


def _row(found: Any) -> Any:  # noqa: ANN401 (what the answer is)
    return tree_map(lambda value: value[None], found)


def _first(answer: Answer, draws: Mapping[str, Tensor]) -> tuple[Any, int]:
    """Answer for the first draw, vectorised over it alone, and how many to take at once; None where it cannot be."""
    state, numpys = torch.get_rng_state(), _numpy_stream()
    try:
        with Written() as written:
            found = _vectorized(answer, {site: value[:1] for site, value in draws.items()})
        if _numpy_stream() == numpys:
            return found, max(1, CHUNK_BYTES // max(1, written.fresh_bytes))
        reason = "random numbers of numpy's would be the same for all"
    except PpgenError:
        raise
    except UNABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    torch.set_rng_state(state)
    _tell(f"a run of the program for each draw, not all draws at once: {reason}")
    return None, 1


def _numpy_stream() -> tuple[object, ...]:
    """The state of numpy's global stream. Python's own is not watched: checkers of types use it for themselves."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return bytes(state[1]), state[2:]


def _vectorized(answer: Answer, draws: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 (what the answer is)
    """Answers for all of ``draws`` at once."""

    def one(theta: Theta) -> Any:  # noqa: ANN401
        with mapped(next(iter(theta.values()))):
            return answer(theta)

    with torch.no_grad(), warnings.catch_warnings():
        for message in VMAP_WARNINGS:
            warnings.filterwarnings("ignore", message)
        return vmap(one, randomness="different")(dict(draws))


def _tell(message: str) -> None:
    """Log a message once in this process."""
    if message not in _told:
        _told.add(message)
        log.info("predictive: %s", message)
