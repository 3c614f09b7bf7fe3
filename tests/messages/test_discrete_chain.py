import math
import os
import warnings

import pytest
import torch
from enumeration import evidence, paths, random_chain, scores
from hmmlearn import _hmmc

from ppgen.messages import DiscreteChain, _compiled, discrete_chain

SHAPES = [(1, 1), (1, 3), (2, 2), (2, 1), (3, 4), (7, 3), (4, 9)]


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def value_and_gradient(chain, lengths=None):
    chain = leaves(*chain)
    value = discrete_chain(*chain, lengths).log_normalizer
    return value.detach(), torch.autograd.grad(value.sum(), chain)


def assert_close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("steps", "states"), SHAPES)
def test_evidence_is_the_sum_over_every_path(steps, states, varying):
    chain = random_chain(steps, states, varying=varying)
    assert_close(discrete_chain(*chain).log_normalizer, evidence(*chain))


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("steps", "states"), SHAPES)
def test_gradient_is_that_of_the_sum_over_every_path(steps, states, varying):
    chain = leaves(*random_chain(steps, states, varying=varying))
    expected = torch.autograd.grad(evidence(*chain), chain, allow_unused=True)
    for ours, theirs in zip(value_and_gradient(chain)[1], expected, strict=True):
        assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


@pytest.mark.parametrize("varying", [False, True])
def test_marginals_and_pairwise_are_frequencies_over_every_path(varying):
    steps, states = 6, 3
    chain = random_chain(steps, states, varying=varying)
    weights, z = scores(*chain).softmax(-1), paths(steps, states)
    posterior = discrete_chain(*chain)
    one_hot = torch.nn.functional.one_hot(z, states).double()
    together = torch.einsum("p,pti,ptj->tij", weights, one_hot[:, :-1], one_hot[:, 1:])
    assert_close(posterior.marginals, torch.einsum("p,ptk->tk", weights, one_hot))
    assert_close(posterior.pairwise_steps(), together)
    assert_close(posterior.pairwise, together if varying else together.sum(0))


def test_gradient_equals_the_expected_counts():
    chain = random_chain(9, 4, 3)
    posterior = discrete_chain(*chain)
    initial, transition, potential = value_and_gradient(chain)[1]
    assert torch.equal(initial, posterior.marginals[:, 0])
    assert torch.equal(transition, posterior.pairwise)
    assert torch.equal(potential, posterior.marginals)


def test_draws_have_the_frequencies_of_the_paths():
    # Pearson's chi-square over 27 paths: false alarm in 1 of 10,000 seeds; the seed is fixed.
    chain = random_chain(3, 3, seed=1)
    n = 50_000
    draws = discrete_chain(*chain).sample(n, generator=torch.Generator().manual_seed(0))
    observed = torch.bincount(draws @ torch.tensor([9, 3, 1]), minlength=27).double()
    expected = n * scores(*chain).softmax(-1)
    assert ((observed - expected) ** 2 / expected).sum() < 61.0  # 1 - 1e-4 quantile with 26 degrees of freedom is 60.1


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_mode_is_the_best_of_all_paths(seed, varying):
    chain = random_chain(6, 3, varying=varying, seed=seed)
    assert torch.equal(discrete_chain(*chain).mode(), paths(6, 3)[scores(*chain).argmax()])


def test_draws_repeat_with_the_generator_and_differ_within_it():
    chain = discrete_chain(*random_chain(30, 3, 2))
    first, second = (chain.sample(4, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert first.shape == (4, 2, 30)
    assert first.dtype == torch.long


def test_leading_dims_broadcast():
    (initial, transition, _), (*_, potential) = random_chain(5, 3), random_chain(5, 3, 2, 4)
    together = discrete_chain(initial, transition.expand(4, 3, 3), potential)
    assert together.log_normalizer.shape == (2, 4)
    assert together.pairwise.shape == (2, 4, 3, 3)
    assert together.sample(3).shape == (3, 2, 4, 5)
    for i in range(2):
        for j in range(4):
            assert_close(together.log_normalizer[i, j], evidence(initial, transition, potential[i, j]))


@pytest.mark.parametrize("varying", [False, True])
def test_a_ragged_batch_is_the_sum_of_singles(varying):
    lengths = torch.tensor([9, 4, 1, 2])
    chain = random_chain(9, 3, 4, varying=varying)
    value, gradient = value_and_gradient(chain, lengths)
    posterior = discrete_chain(*chain, lengths)
    draws, mode = posterior.sample(2), posterior.mode()
    for row, n in enumerate(lengths.tolist()):
        single = [chain[0][row], chain[1][row, : n - 1] if varying else chain[1][row], chain[2][row, :n]]
        alone, (initial, transition, potential) = value_and_gradient(single)
        assert_close(value[row], alone)
        assert_close(gradient[0][row], initial)
        assert_close(gradient[1][row, : n - 1] if varying else gradient[1][row], transition)
        assert_close(gradient[2][row, :n], potential)
        assert (gradient[2][row, n:] == 0).all()
        assert torch.equal(mode[row, :n], discrete_chain(*single).mode())
        assert (mode[row, n:] == mode[row, n - 1]).all()
        assert (draws[:, row, n:] == draws[:, row, n - 1 : n]).all()


def test_what_lies_beyond_the_length_is_never_read():
    chain = random_chain(6, 3, 2)
    lengths = torch.tensor([6, 3])
    clean = value_and_gradient(chain, lengths)
    chain[2][1, 3:] = math.nan
    dirty = value_and_gradient(chain, lengths)
    assert torch.equal(clean[0], dirty[0])
    assert all(torch.equal(a, b) for a, b in zip(clean[1], dirty[1], strict=True))


def test_a_sequence_of_length_zero_adds_nothing():
    value, gradient = value_and_gradient(random_chain(4, 3, 2), torch.tensor([0, 4]))
    assert value[0] == 0
    assert all((g[0] == 0).all() for g in gradient)
    assert (discrete_chain(*random_chain(4, 3, 2), torch.tensor([0, 4])).mode()[0] == -1).all()


def test_relabelling_the_states_changes_nothing():
    initial, transition, potential = random_chain(40, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    plain = discrete_chain(initial, transition, potential)
    other = discrete_chain(initial[order], transition[order][:, order], potential[:, order])
    assert_close(plain.log_normalizer, other.log_normalizer)
    assert_close(plain.marginals[:, order], other.marginals)
    assert torch.equal(plain.mode(), order[other.mode()])


def test_a_left_to_right_chain_never_goes_back():
    initial, transition, potential = random_chain(6, 3)
    initial[1:] = -math.inf
    transition = transition.masked_fill(torch.ones(3, 3).tril(-1).bool(), -math.inf)
    chain = (initial, transition, potential)
    assert_close(discrete_chain(*chain).log_normalizer, evidence(*chain))
    assert (discrete_chain(*chain).sample(200).diff(dim=-1) >= 0).all()
    assert (discrete_chain(*chain).mode().diff() >= 0).all()
    for gradient in value_and_gradient(chain)[1]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("varying", [False, True])
def test_a_chain_of_probability_zero_says_so_and_has_no_gradient(varying):
    chain = random_chain(8, 3, 2, varying=varying)
    chain[2][0, 5] = -math.inf
    value, gradient = value_and_gradient(chain)
    assert value[0] == -math.inf
    assert value[1].isfinite()
    assert all((g[0] == 0).all() and (g[1] != 0).any() for g in gradient)
    with pytest.raises(ValueError, match="some path must have positive probability, sequence 0"):
        discrete_chain(*chain).sample(1)
    with pytest.raises(ValueError, match="some path must have positive probability, sequence 0"):
        discrete_chain(*chain).mode()


def test_forbidden_states_beside_extreme_potentials_are_summed_exactly():
    # One state dies by 20,000 nats and is the only one that survives the end: rescaled messages would have lost it.
    initial = torch.zeros(2, dtype=torch.float64)
    transition = torch.eye(2, dtype=torch.float64).log()
    potential = torch.zeros(300, 2, dtype=torch.float64)
    potential[:100, 1], potential[100:200, 1], potential[200:, 1] = -200.0, 500.0, -200.0
    value, gradient = value_and_gradient((initial, transition, potential))
    assert_close(value, torch.tensor(10_000.0, dtype=torch.float64))
    assert_close(gradient[2][:, 1], torch.ones(300, dtype=torch.float64))


@pytest.mark.parametrize("sparse", ["dense", "sparse", "tiny"])
@pytest.mark.parametrize("varying", [False, True])
def test_potentials_of_ten_thousand_are_exact(sparse, varying):
    chain = random_chain(7, 3, varying=varying, scale=1e4, seed=3)
    if sparse != "dense":
        off = torch.rand(chain[1].shape, generator=torch.Generator().manual_seed(0)) < 0.4
        chain[1][off] = -math.inf if sparse == "sparse" else -2000.0
    chain = leaves(*chain)
    expected = torch.autograd.grad(evidence(*chain), chain)
    value, gradient = value_and_gradient(chain)
    torch.testing.assert_close(value, evidence(*chain).detach(), rtol=1e-14, atol=0)
    for ours, theirs in zip(gradient, expected, strict=True):
        assert_close(ours, theirs.nan_to_num())


def test_nan_comes_out_as_nan_and_stays_in_its_sequence():
    chain = random_chain(8, 3, 2)
    chain[2][0, 3, 1] = math.nan
    value, gradient = value_and_gradient(chain)
    assert value[0].isnan()
    assert value[1].isfinite()
    assert gradient[2][1].isfinite().all()


@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_a_million_steps_equal_the_product_of_their_chunks(size):
    steps, chunk = 1_000_000, 1000
    initial, transition, potential = random_chain(steps, 2, scale=size)
    posterior = discrete_chain(initial, transition, potential)
    # Reference: each chunk as a 2 x 2 matrix of evidences, from each state fixed before it; then the matrices chained.
    pieces = potential.reshape(-1, 1, chunk, 2).expand(-1, 2, -1, -1)
    matrices = _filtered(transition.expand(len(pieces), 2, 2), transition, pieces)
    message = _filtered(initial, transition, pieces[0, 0])
    for matrix in matrices[1:]:
        message = (message[:, None] + matrix).logsumexp(0)
    torch.testing.assert_close(posterior.log_normalizer, message.logsumexp(0), rtol=1e-12, atol=0)
    assert_close(posterior.marginals.sum(-1), torch.ones(steps, dtype=torch.float64))


def _filtered(first, transition, potential):
    message = first + potential[..., 0, :]
    for t in range(1, potential.shape[-2]):
        message = (message[..., :, None] + transition).logsumexp(-2) + potential[..., t, :]
    return message


@pytest.mark.parametrize("varying", [False, True])
def test_the_exact_kernel_equals_the_scaled_one_where_both_hold(varying):
    chain = random_chain(30, 4, 2, varying=varying)
    scaled = value_and_gradient(chain)
    # A transition too rare to matter sends the whole chain to the exact kernel.
    chain[1][..., 0, 1] = -1000.0
    rare = value_and_gradient(chain)
    chain[1][..., 0, 1] = -200.0
    less_rare = value_and_gradient(chain)
    assert not torch.equal(scaled[0], rare[0])
    assert_close(rare[0], less_rare[0])
    for a, b in zip(rare[1], less_rare[1], strict=True):
        assert_close(a, b)


def test_threads_change_nothing(threads):
    chain = random_chain(3000, 7, 3)
    torch.set_num_threads(1)
    alone = value_and_gradient(chain)
    torch.set_num_threads(threads)
    together = value_and_gradient(chain)
    assert torch.equal(alone[0], together[0])
    assert all(torch.equal(a, b) for a, b in zip(alone[1], together[1], strict=True))


def test_a_forked_process_starts_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(_compiled, "_pool", None)
    before = _compiled._threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if _compiled._pool is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _compiled._pool is before


def test_agrees_with_hmmlearn():
    initial, transition, potential = random_chain(500, 4, seed=2)
    initial, transition = initial.log_softmax(-1), transition.log_softmax(-1)
    arrays = initial.exp().numpy(), transition.exp().numpy(), potential.numpy()
    value, forward = _hmmc.forward_log(*arrays)
    backward = _hmmc.backward_log(*arrays)
    marginals = torch.from_numpy(forward + backward).softmax(-1)
    posterior = discrete_chain(initial, transition, potential)
    assert_close(posterior.log_normalizer.item(), value)
    assert_close(posterior.marginals, marginals)


@pytest.mark.parametrize(
    ("initial", "transition", "potential", "message"),
    [
        ((3,), (3, 3), (3,), r"log_potential must have shape \(\.\.\., T, K\)"),
        ((3,), (3, 3), (0, 3), r"log_potential must have shape \(\.\.\., T, K\) with T, K >= 1, got \(0, 3\)"),
        ((2,), (3, 3), (5, 3), r"log_initial must have shape \(\.\.\., K=3\) .* got \(2,\)"),
        ((3,), (3, 2), (5, 3), r"log_transition must have shape \(\.\.\., K=3, K=3\).* got \(3, 2\)"),
        ((3,), (5, 3, 3), (5, 3), r"T-1=4, K=3, K=3\), got \(5, 3, 3\)"),
        ((3,), (2, 2, 4, 3, 3), (5, 3), r"log_transition must have shape"),
    ],
)
def test_a_wrong_shape_is_refused_in_words(initial, transition, potential, message):
    with pytest.raises(ValueError, match=message):
        DiscreteChain(torch.zeros(initial), torch.zeros(transition), torch.zeros(potential))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 7]), r"lengths must lie in \[0, T=5\], got 3 to 7"),
        (torch.tensor([-1, 2]), r"lengths must lie in \[0, T=5\], got -1 to 2"),
        (torch.tensor([1.0, 2.0]), "lengths must be whole numbers, got torch.float32"),
    ],
)
def test_wrong_lengths_are_refused_in_words(lengths, message):
    with pytest.raises(ValueError, match=message):
        DiscreteChain(*random_chain(5, 3, 2), lengths)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("steps", "states", "scale"), [(1, 1, 1.0), (7, 3, 1.0), (90, 5, 40.0)])
def test_steps_sum_to_the_normalisers_of_every_beginning(steps, states, scale, varying):
    initial, transition, potential = random_chain(steps, states, 3, varying=varying, scale=scale)
    lengths = torch.tensor([steps, (steps + 1) // 2, 0])
    found = discrete_chain(initial, transition, potential, lengths).log_steps()
    for stop in range(1, steps + 1):
        moves = transition[:, : stop - 1] if varying else transition
        chain = discrete_chain(initial, moves, potential[:, :stop], lengths.clamp_max(stop))
        torch.testing.assert_close(found[:2, :stop].sum(-1), chain.log_normalizer[:2], rtol=1e-10, atol=1e-9)
    assert (found[2] == 0).all()


def test_steps_of_a_chain_that_becomes_impossible_stop_there():
    apart = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], dtype=torch.float64)
    potential = torch.zeros(6, 2, dtype=torch.float64)
    potential[3, 0] = -torch.inf
    for second in (-800.0, -torch.inf):
        initial = torch.tensor([0.0, second], dtype=torch.float64)
        assert discrete_chain(initial, apart, potential).log_steps().tolist() == [0.0, 0.0, 0.0, second, 0.0, 0.0]


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("steps", "states"), SHAPES)
def test_the_score_of_every_path_is_its_log_weight(steps, states, varying):
    chain, z = leaves(*random_chain(steps, states, varying=varying)), paths(steps, states)
    wanted, found = scores(*chain), discrete_chain(*chain).score(z)
    assert_close(found, wanted)
    weights = torch.randn(len(z), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(weights @ found, chain),
        torch.autograd.grad(weights @ wanted, chain, allow_unused=True),
        strict=True,
    ):
        assert_close(a, torch.zeros_like(a) if b is None else b)
    assert torch.equal(discrete_chain(*chain).score(z[-1]), found[-1])


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_score_stops_at_the_length(varying, shared):
    chain = random_chain(6, 3, 2, 4, varying=varying)
    if shared:
        chain = (chain[0][0, 0], chain[1][0, 0] if not varying else chain[1], chain[2])
    lengths = torch.tensor([6, 4, 1, 0])
    posterior = discrete_chain(*chain, lengths)
    z = posterior.sample(5)
    found = posterior.score(z)
    assert found.shape == (5, 2, 4)
    assert torch.equal(posterior.score(z[2]), found[2])
    for i in range(2):
        for j, n in enumerate(lengths.tolist()):
            initial, transition = (t[i, j] if t.dim() > 2 else t for t in chain[:2])
            path = z[3, i, j, :n]
            wanted = initial[path[0]] + chain[2][i, j, torch.arange(n), path].sum() if n else torch.zeros(()).double()
            moves = [(transition[t] if varying else transition)[path[t], path[t + 1]] for t in range(n - 1)]
            assert_close(found[3, i, j], wanted + sum(moves))


def test_the_score_of_a_forbidden_path_is_minus_infinity_and_harms_no_gradient():
    chain = random_chain(3, 2)
    chain[1][0, 1] = -math.inf
    chain = leaves(*chain)
    found = discrete_chain(*chain).score(torch.tensor([[0, 1, 1], [0, 0, 0]]))
    assert found[0] == -math.inf
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), chain))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(4, 5).long(), r"z must have shape \(2, 5\) or \(n, \*\(2, 5\)\), got \(4, 5\)"),
        (torch.full((2, 5), 3), r"states must lie in \[0, K=3\), got 3 to 3"),
        (torch.full((2, 5), -1), r"states must lie in \[0, K=3\), got -1 to -1"),
    ],
)
def test_paths_that_are_none_have_no_score(z, message):
    with pytest.raises(ValueError, match=message):
        discrete_chain(*random_chain(5, 3, 2)).score(z)
