"""Tensors that a density depends on and that nothing samples: weights of networks, and ``pyro.param``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.programs.density import Density

__all__ = ["untrained"]


def untrained(target: Density, model: object) -> list[str]:
    """Names of the learnt tensors that the log density of ``model`` depends on, registered with Pyro or not.

    They are the leaves of its graph at some values of the sites, less what ``model`` itself holds fixed.
    """
    values = target.constrain(target.start(1, torch.Generator(target.device).manual_seed(0)))
    own = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    with (
        _learning(target.program, [name for name, tensor in own.items() if tensor.requires_grad]) as known,
        torch.enable_grad(),
    ):
        trace = target.trace({name: value[0].detach() for name, value in values.items()})
        trace.compute_log_prob()
        scores = [site["log_prob_sum"] for site in trace.nodes.values() if "log_prob_sum" in site]
    sites: dict[str, Any] = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "param"}
    declared = {
        id(value.unconstrained() if hasattr(value, "unconstrained") else value): n for n, value in sites.items()
    }
    names = declared | {id(tensor): name for name, tensor in known.items()}
    leaves = {id(leaf): leaf for score in scores for leaf in _leaves(score)}
    return sorted(names.get(key, f"a tensor of shape {tuple(leaf.shape)}") for key, leaf in leaves.items())


@contextmanager
def _learning(program: Any, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:  # noqa: ANN401 (any callable)
    """Parameters of these names in the module that a program belongs to, whose gradients are recorded inside."""
    module = getattr(program, "__self__", program)
    known = {name: module.get_parameter(name) for name in names}
    for tensor in known.values():
        tensor.requires_grad_()
    try:
        yield known
    finally:
        for tensor in known.values():
            tensor.requires_grad_(False)


def _leaves(score: Tensor) -> Iterator[Tensor]:
    """Leaves of the graph that a tensor was computed by."""
    open_nodes, seen = [score.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        open_nodes.extend(following for following, _ in node.next_functions)
