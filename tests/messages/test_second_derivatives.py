"""Expected statistics differentiated once more, held against autograd through every path and every covariance."""

import math

import pytest
import torch
from enumeration import dense, evidence, random_chain, random_gaussian

from ppgen.messages import _operator as _op
from ppgen.messages import discrete_chain, gaussian_chain
from ppgen.messages.discrete import _dispatch as _discrete
from ppgen.messages.gaussian import _dispatch as _gaussian


@pytest.fixture(params=["kernels", "scans"])
def memory(request, monkeypatch):
    if request.param == "scans":
        for module in (_discrete, _gaussian):
            monkeypatch.setattr(module, "has_kernels", lambda _: False)


every_memory = pytest.mark.usefixtures("memory")


def discrete(*chain):
    return discrete_chain(*chain).log_normalizer


def gaussian(*chain):
    return gaussian_chain(*chain).log_normalizer


def gaussian_evidence(*chain):
    return dense(*chain)[0]


CASES = {
    "discrete, one step": (discrete, evidence, lambda *batch, **k: random_chain(1, 3, *batch, **k)),
    "discrete": (discrete, evidence, lambda *batch, **k: random_chain(6, 3, *batch, **k)),
    "discrete, one state": (discrete, evidence, lambda *batch, **k: random_chain(3, 1, *batch, **k)),
    "discrete, varying": (discrete, evidence, lambda *batch, **k: random_chain(5, 3, *batch, varying=True, **k)),
    "gaussian, one block": (gaussian, gaussian_evidence, lambda *batch, **k: random_gaussian(1, 3, *batch, **k)),
    "gaussian, two blocks": (gaussian, gaussian_evidence, lambda *batch, **k: random_gaussian(2, 2, *batch, **k)),
    "gaussian": (gaussian, gaussian_evidence, lambda *batch, **k: random_gaussian(6, 3, *batch, **k)),
    "gaussian, repeated": (
        gaussian,
        gaussian_evidence,
        lambda *batch, **k: random_gaussian(9, 2, *batch, repeated=True, **k),
    ),
}
every_case = pytest.mark.parametrize(("function", "direct", "make"), CASES.values(), ids=CASES.keys())
quick = pytest.mark.parametrize(
    ("function", "direct", "make"), [CASES["discrete"], CASES["gaussian"]], ids=["discrete", "gaussian"]
)


def leaves(tensors):
    return [t.clone().requires_grad_() for t in tensors]


def along(function, chain, direction):
    """Derivative of the gradient of a function in a direction."""
    chain = leaves(chain)
    first = torch.autograd.grad(function(*chain).sum(), chain, create_graph=True, allow_unused=True)
    total = sum((g * d).sum() for g, d in zip(first, direction, strict=True) if g is not None)
    second = torch.autograd.grad(total, chain, allow_unused=True)
    return [torch.zeros_like(t) if s is None else s for s, t in zip(second, chain, strict=True)]


def assert_all_close(found, wanted, atol=1e-11):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=atol)


@every_memory
@every_case
def test_the_second_derivative_is_that_of_the_sum_over_everything(function, direct, make):
    for seed in range(3):
        chain, direction = make(seed=seed), make(seed=seed + 10)
        assert_all_close(along(function, chain, direction), along(direct, chain, direction))


@every_memory
@every_case
def test_each_sequence_of_a_batch_has_its_own(function, direct, make):
    chain, direction = make(2, 2), make(2, 2, seed=1)
    together = along(function, chain, direction)
    for i in range(2):
        for j in range(2):
            alone = along(direct, [t[i, j] for t in chain], [t[i, j] for t in direction])
            assert_all_close([t[i, j] for t in together], alone)


@every_memory
@quick
@pytest.mark.parametrize("own", [(0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_what_a_batch_shares_gets_the_sum(function, direct, make, own):
    shared, many, direction = make(), make(3), make(3, seed=1)
    chain = [m if o else s for m, s, o in zip(many, shared, own, strict=True)]
    towards = [d if o else d[0] for d, o in zip(direction, own, strict=True)]

    def each(*chain):
        rows = [[t[i] if o else t for t, o in zip(chain, own, strict=True)] for i in range(3)]
        return torch.stack([direct(*row) for row in rows])

    assert_all_close(along(function, chain, towards), along(each, chain, towards))


@every_memory
@pytest.mark.parametrize("varying", [False, True])
def test_a_ragged_batch_is_its_sequences_alone(varying):
    lengths = torch.tensor([7, 3, 1, 0])
    chain, direction = (random_chain(7, 3, 4, varying=varying, seed=s) for s in range(2))
    chain[2][1, 3:] = math.nan  # never read
    together = along(lambda *c: discrete_chain(*c, lengths).log_normalizer, chain, direction)
    for row, n in enumerate(lengths.tolist()):
        cut = slice(max(n - 1, 0)) if varying else slice(None)
        parts = [(t[0][row], t[1][row, cut], t[2][row, :n]) for t in (chain, direction)]
        alone = along(evidence, *parts) if n else [torch.zeros_like(t) for t in parts[0]]
        found = [together[0][row], together[1][row, cut], together[2][row, :n]]
        assert_all_close(found, alone)
        assert (together[2][row, n:] == 0).all()


@every_memory
@pytest.mark.parametrize("varying", [False, True])
def test_counts_have_the_derivatives_of_frequencies_over_every_path(varying):
    chain, weights = leaves(random_chain(5, 3, varying=varying)), random_chain(5, 3, varying=varying, seed=1)

    def total(marginals, pairwise):
        return (marginals * weights[2]).sum() + (pairwise * weights[1]).sum()

    posterior = discrete_chain(*chain)
    found = torch.autograd.grad(total(posterior.marginals, posterior.pairwise), chain)
    _, pairs, states = torch.autograd.grad(evidence(*chain), chain, create_graph=True)
    assert_all_close(found, torch.autograd.grad(total(states, pairs), chain))
    assert torch.autograd.gradcheck(lambda *c: discrete_chain(*c).pairwise_steps(), chain)


@every_memory
@pytest.mark.parametrize(("steps", "width"), [(1, 2), (2, 1), (5, 3)])
def test_moments_have_the_derivatives_of_those_of_the_joint_gaussian(steps, width):
    chain = leaves(random_gaussian(steps, width))
    w, v, u = (torch.randn(steps, *[width] * n, dtype=torch.float64) for n in (2, 2, 1))
    posterior = gaussian_chain(*chain)
    found = (w * posterior.covariance).sum() + (u * posterior.mean).sum()
    found = found + (v[1:] * posterior.cross_covariance).sum()
    _, mean, covariance = dense(*chain)
    together = covariance.view(steps, width, steps, width)
    wanted = (u.flatten() * mean).sum() + sum((w[t] * together[t, :, t]).sum() for t in range(steps))
    wanted = wanted + sum((v[t + 1] * together[t, :, t + 1]).sum() for t in range(steps - 1))
    expected = torch.autograd.grad(wanted, chain, allow_unused=True)
    expected = [torch.zeros_like(t) if g is None else g for g, t in zip(expected, chain, strict=True)]
    assert_all_close(torch.autograd.grad(found, chain), expected)


@every_memory
@quick
def test_differences_of_the_gradient_agree(function, direct, make):
    assert torch.autograd.gradgradcheck(function, leaves(make(2)))


@every_memory
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_forbidden_states_have_the_second_derivative_of_the_paths_that_remain(scale):
    chain, direction = (random_chain(6, 3, seed=s, scale=scale if s == 0 else 1.0) for s in range(2))
    forbidden = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
    chain[1][forbidden] = -math.inf
    chain[2][2, 0] = -math.inf
    found = along(discrete, chain, direction)
    for part, blocked in ((1, forbidden), (2, chain[2] == -math.inf)):
        assert (found[part][blocked] == 0).all()
    low = [t.clamp_min(-1e4) for t in chain]  # finite, so that the sum over every path has a derivative
    assert_all_close(found, along(evidence, low, direction))


@every_memory
def test_a_chain_of_probability_zero_has_second_derivative_zero():
    chain, direction = random_chain(5, 3, 2), random_chain(5, 3, 2, seed=1)
    chain[2][0, 2] = -math.inf
    for found in along(discrete, chain, direction):
        assert (found[0] == 0).all()
        assert (found[1] != 0).any()


def test_a_long_sticky_chain_agrees_with_differences_and_between_memories(monkeypatch):
    steps = 3000
    initial, _, potential = random_chain(steps, 3)
    chain = [initial, torch.full((3, 3), -6.0).double().fill_diagonal_(0.0), potential]
    direction = random_chain(steps, 3, seed=1)

    def gradient(step):
        moved = leaves(c + step * d for c, d in zip(chain, direction, strict=True))
        return torch.autograd.grad(discrete(*moved), moved)

    found = along(discrete, chain, direction)
    step = 1e-5
    wanted = [(a - b) / (2 * step) for a, b in zip(gradient(step), gradient(-step), strict=True)]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(_discrete, "has_kernels", lambda _: False)
    assert_all_close(along(discrete, chain, direction), found, atol=1e-9)


def test_an_indefinite_chain_leaves_the_others_alone():
    chain, direction = random_gaussian(4, 2, 2), random_gaussian(4, 2, 2, seed=1)
    wanted = along(gaussian, [t[0] for t in chain], [t[0] for t in direction])
    chain[0][1, 2] *= -1
    found = along(lambda *c: gaussian_chain(*c, strict=False).log_normalizer, chain, direction)
    assert_all_close([t[0] for t in found], wanted)
    assert all(t[1].isnan().all() for t in found)


@every_memory
@quick
def test_functional_transformations_give_the_same(function, direct, make):
    many = make(3)

    def second(a, b, c):
        first = torch.func.grad(lambda s: function(a, b, s * c))
        return torch.func.grad(first)(torch.ones(()).double())

    found = torch.func.vmap(second)(*many)
    for i in range(3):
        a, b, c = (t[i] for t in many)
        torch.testing.assert_close(found[i], (along(direct, (a, b, c), (a * 0, b * 0, c))[2] * c).sum())
    a, b, c = make()
    hessian = torch.func.jacrev(torch.func.grad(function, 2), 2)(a, b, c)
    rows = hessian.reshape(c.numel(), *c.shape)
    for row, unit in zip(rows, torch.eye(c.numel(), dtype=torch.float64), strict=True):
        assert_all_close([row], [along(direct, (a, b, c), (a * 0, b * 0, unit.view_as(c)))[2]])


@quick
def test_large_chains_have_the_same(function, direct, make, monkeypatch):
    chain, direction, weights = make(3), make(3, seed=1), torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)

    def bent(*chain):
        return (weights * function(*chain)).sin()  # so that the gradient that comes in has a derivative too

    kept = along(bent, chain, direction)

    def second(scale, a, b, c):
        return torch.func.grad(lambda s: torch.func.grad(lambda s: bent(a[None], b[None], s * c[None]).sum())(s))(scale)

    many = torch.func.vmap(second, (None, 0, 0, 0))
    scale = torch.ones(()).double()
    vectorised = many(scale, *chain)
    monkeypatch.setattr(_op, "KEEP_AT_MOST", 0)
    assert_all_close(along(bent, chain, direction), kept)
    assert_all_close([many(scale, *chain)], [vectorised])


def test_threads_change_nothing(threads):
    chains = [(discrete, random_chain(3000, 7, 3)), (gaussian, random_gaussian(4000, 4, 3))]
    for function, chain in chains:
        torch.set_num_threads(1)
        alone = along(function, chain, chain)
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, along(function, chain, chain), strict=True))


@quick
def test_a_third_derivative_is_refused_not_wrong(function, direct, make):
    chain = leaves(make())
    first = torch.autograd.grad(function(*chain), chain, create_graph=True)
    second = torch.autograd.grad((first[2] ** 2).sum(), chain[2], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="log_normalizer has no third derivative"):
        second.sum().backward()


def test_lower_precision_comes_back_as_it_came():
    for function, make in ((discrete, random_chain), (gaussian, random_gaussian)):
        chain = [t.float() for t in make(4, 2)]
        found = along(function, chain, chain)
        assert all(t.dtype == torch.float32 for t in found)
        double = [t.double() for t in chain]
        assert_all_close(found, [t.float() for t in along(function, double, double)], atol=1e-6)
