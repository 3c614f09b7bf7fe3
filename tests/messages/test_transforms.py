"""Both chains under torch's program transformations, by the same laws."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from enumeration import random_chain, random_gaussian
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.messages import _operator as _op
from ppgen.messages import discrete_chain, gaussian_chain


def discrete(*chain):
    return discrete_chain(*chain).log_normalizer


def gaussian(*chain):
    return gaussian_chain(*chain).log_normalizer


CASES = {
    "discrete": (discrete, lambda *batch: random_chain(4, 3, *batch)),
    "discrete, varying": (discrete, lambda *batch: random_chain(4, 3, *batch, varying=True)),
    "gaussian": (gaussian, lambda *batch: random_gaussian(4, 2, *batch)),
}
every_chain = pytest.mark.parametrize(("function", "make"), CASES.values(), ids=CASES.keys())


def leaves(tensors):
    return [t.clone().requires_grad_() for t in tensors]


def gradient(function, inputs):
    inputs = leaves(inputs)
    return torch.autograd.grad(function(*inputs).sum(), inputs)


def assert_all_close(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@every_chain
def test_gradient_is_the_limit_of_differences(function, make):
    assert torch.autograd.gradcheck(function, leaves(make()))
    assert torch.autograd.gradcheck(function, leaves(make(2)))


@every_chain
def test_what_a_batch_shares_gets_the_sum_of_gradients(function, make):
    shared, own = make(), make(3)
    for mixed in ((shared[0], shared[1], own[2]), (shared[0], own[1], own[2]), (own[0], shared[1], own[2])):
        assert torch.autograd.gradcheck(function, leaves(mixed))


@every_chain
def test_functional_gradient_equals_the_ordinary_one(function, make):
    chain = make()
    assert_all_close(torch.func.grad(function, (0, 1, 2))(*chain), gradient(function, chain))


@every_chain
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, None, 0), (None, 0, None), (0, None, None)])
def test_vmap_of_value_and_gradient_equals_a_loop(function, make, in_dims):
    many, one = make(3), make()
    chain = [one[i] if dim is None else many[i] for i, dim in enumerate(in_dims)]
    both = torch.func.grad_and_value(function, (0, 1, 2))
    gradients, values = torch.func.vmap(both, in_dims)(*chain)
    for i in range(3):
        expected_gradients, value = both(*(t if dim is None else t[i] for t, dim in zip(chain, in_dims, strict=True)))
        torch.testing.assert_close(values[i], value)
        assert_all_close([g[i] for g in gradients], expected_gradients)


@every_chain
def test_vmap_in_vmap_over_a_batch_equals_one_batch(function, make):
    chain = make(2, 3, 4)
    nested = torch.func.vmap(torch.func.vmap(function, (1, 1, 1)), (1, 1, 1))(*chain)
    torch.testing.assert_close(nested, function(*chain).permute(1, 2, 0))


@every_chain
def test_a_trace_holds_one_call_of_the_kernel_and_works_on_new_numbers(function, make):
    vectorised = torch.func.vmap(torch.func.grad(function, (0, 1, 2)))
    trace = make_fx(vectorised)(*make(3))
    calls = [node for node in trace.graph.nodes if "ppgen" in str(node.target)]
    assert len(calls) == 1
    chain = [1.1 * t for t in make(3)]
    assert_all_close(trace(*chain), vectorised(*chain))


COMPILE = """
import torch
from test_transforms import CASES, assert_all_close, gradient
for function, make in CASES.values():
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_all_close(gradient(compiled, make(2)), gradient(function, make(2)))
"""


@pytest.mark.slow
def test_the_whole_graph_compiles():
    # In a process of its own: the shape checks that the tests install around every function cannot be compiled.
    subprocess.run([sys.executable, "-c", COMPILE], cwd=Path(__file__).parent, check=True, timeout=300)


@every_chain
def test_large_chains_compute_their_statistics_in_the_backward_pass(function, make, monkeypatch):
    chain = make(3)
    kept = gradient(function, chain)
    vectorised = torch.func.vmap(torch.func.grad(function, (0, 1, 2)))(*chain)
    monkeypatch.setattr(_op, "KEEP_AT_MOST", 0)
    assert_all_close(gradient(function, chain), kept)
    assert_all_close(torch.func.vmap(torch.func.grad(function, (0, 1, 2)))(*chain), vectorised)


@every_chain
def test_the_incoming_gradient_weighs_each_sequence(function, make):
    chain, weights = leaves(make(3)), torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    weighted = torch.autograd.grad((weights * function(*chain)).sum(), chain)
    for i, w in enumerate(weights):
        assert_all_close([g[i] for g in weighted], [w * g for g in gradient(function, [t.detach()[i] for t in chain])])


@every_chain
def test_a_third_derivative_is_refused_not_wrong(function, make):
    a, b, c = leaves(make())
    scale = torch.tensor(1.0).double()
    twice = torch.func.grad(torch.func.grad(lambda s: function(a, b, s * c)))
    assert twice(scale).isfinite()
    with pytest.raises(NotImplementedError, match="no third derivative"):
        torch.func.grad(twice)(scale)


def test_the_posterior_has_one_derivative():
    chain = leaves(random_chain(4, 3))
    first = torch.autograd.grad(discrete_chain(*chain).marginals[0, 0], chain, create_graph=True)
    with pytest.raises(NotImplementedError, match="its expected statistics have no second"):
        first[2].sum().backward()
    assert discrete_chain(*chain).marginals.detach().sum() == pytest.approx(4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@every_chain
def test_lower_precision_is_computed_in_float64_and_returned_as_it_came(function, make, dtype):
    chain = leaves(t.to(dtype) for t in make())
    value = function(*chain)
    assert value.dtype == dtype
    expected = function(*(t.detach().double() for t in chain))
    assert value == expected.to(dtype)
    assert all(g.dtype == dtype for g in torch.autograd.grad(value, chain))


def test_a_graph_traced_at_some_lengths_is_right_at_others():
    """A length outside [0, T] cannot be refused there: it is taken for the nearest that can be."""

    def function(a, transition, potential, lengths):
        return discrete_chain(a, transition, potential, lengths).log_normalizer

    chain = random_chain(4, 3, 3)
    graph = make_fx(function)(*chain, torch.tensor([4, 4, 4]))
    for lengths in ([0, 2, 4], [3, 1, 1]):
        torch.testing.assert_close(graph(*chain, torch.tensor(lengths)), function(*chain, torch.tensor(lengths)))
    outside, nearest = (graph(*chain, torch.tensor(lengths)) for lengths in ([-1, 9, 2], [0, 4, 2]))
    assert outside.equal(nearest)
