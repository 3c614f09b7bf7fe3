"""The number of threads that a graph of operators is worth: one where tensors are small, more where they are large.

Threads meet at the end of every operator that is shared among them. On small tensors the meeting costs more than the
work, and where another program holds one of the cores, each meeting waits for it. The number goes by the size of the
operators, so that small programs have the same bits whatever number torch was allowed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["limited", "threads_for"]

WORTH = 1 << 17  # numbers an operator must write for each thread, about a tenth of a millisecond


def threads_for(width: float) -> int:
    """Threads for operators that write ``width`` numbers each: at most as many as torch may use now."""
    return max(1, min(torch.get_num_threads(), int(width // WORTH)))


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Within it torch uses so many threads, None as many as before; afterwards, and after an error, as before."""
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
