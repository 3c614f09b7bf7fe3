"""Integrals over hidden features, against the loop over patterns that they replace, and the operators' own laws."""

import math

import pytest
import torch
from dense import condition, normal, spd
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.emissions import Gaussian, _pinned, gaussian, hidden, quadratic
from ppgen.emissions.emission import distinct_patterns
from ppgen.emissions.hidden import hidden_draw, hidden_normalizer
from ppgen.emissions.quadratic import coefficients, pack_products
from ppgen.programs.tracing import build

SIZES = [(1, 1), (2, 3), (5, 9), (16, 8), (20, 20)]


def statistics(K, D):
    """Expected statistics under a posterior that some data may have left."""
    family = Gaussian(D).family
    return family.expected(
        family.natural(
            location=normal(K, D), strength=torch.ones(K).double(), scale=spd(K, size=D),
            degrees=torch.full((K,), D + 5.0).double(),
        )
    )  # fmt: skip


def gaps(n, D, share=0.4):
    """Rows with their own gaps; the first is complete, the second hides everything, the third as the fourth."""
    x = normal(n, D).masked_fill(torch.rand(n, D) < share, torch.nan)
    x[0], x[1] = normal(D), torch.nan
    x[2] = torch.where(x[3].isnan(), torch.nan, normal(D))
    return x


def form_of(s):
    return Gaussian(s["linear"].shape[-1])._form(s)


def loop(x, s):
    """What it was: one Schur complement for each pattern."""
    D = x.shape[-1]
    form, scores = form_of(s), x.new_zeros(len(x), len(s["linear"]))
    patterns, inverse = distinct_patterns(x.isnan())
    for number, lost in enumerate(patterns.tolist()):
        rows = (inverse == number).nonzero()[:, 0]
        missing, seen = [d for d in range(D) if lost[d]], [d for d in range(D) if not lost[d]]
        if not seen:
            continue
        kept, cross = form[:, [*seen, D]][:, :, [*seen, D]], form[:, missing][:, :, [*seen, D]]
        precision = -2 * form[:, missing][:, :, missing]
        reduced = kept + 2 * cross.mT @ torch.linalg.solve(precision, cross)
        constant = (len(missing) - D) / 2 * math.log(2 * math.pi) - torch.logdet(precision) / 2 + s["log_det"]
        w = torch.nn.functional.pad(x[rows][:, seen], (0, 1), value=1.0)
        scores = scores.index_add(0, rows, pack_products(w) @ coefficients(reduced).mT + constant)
    return scores


def value_and_gradient(function, x, s):
    leaves = {name: value.clone().requires_grad_() for name, value in s.items()}
    weights = torch.linspace(0.5, 1.5, len(x) * len(s["linear"]), dtype=torch.float64).reshape(len(x), -1)
    value = function(x, leaves)
    gradients = torch.autograd.grad((value * weights).sum(), list(leaves.values()))
    return value.detach(), {n: (g + g.mT) / 2 if g.ndim == 3 else g for n, g in zip(s, gradients, strict=True)}


def assert_alike(ours, wanted):
    """To twelve digits of the largest."""
    for one, two in zip(*(torch.utils._pytree.tree_leaves(t) for t in (ours, wanted)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12 * max(1.0, float(two.abs().max())))


@pytest.mark.parametrize("rows_per_pattern", [1, math.inf])
@pytest.mark.parametrize(("D", "K"), SIZES)
def test_value_and_gradient_are_those_of_the_loop_over_patterns(monkeypatch, D, K, rows_per_pattern):
    monkeypatch.setattr(gaussian, "ROWS_PER_PATTERN", rows_per_pattern)
    monkeypatch.setattr(quadratic, "ROWS_AT_ONCE", 25)
    x, s = gaps(60, D), statistics(K, D)
    ours = value_and_gradient(Gaussian(D).potential, x, s)
    assert_alike(ours, value_and_gradient(loop, x, s))


def test_the_gradient_in_a_symmetric_matrix_is_symmetric():
    x, s = gaps(60, 4), statistics(3, 4)
    form = form_of(s).requires_grad_()
    (gradient,) = torch.autograd.grad(hidden_normalizer(x, form).sum(), form)
    assert gradient.equal(gradient.mT)


def test_a_form_for_each_pattern_is_mapped_and_traced_as_an_integral_for_each_row(monkeypatch):
    x, many = gaps(30, 4).repeat(3, 1), [statistics(3, 4) for _ in range(2)]
    stacked = {name: torch.stack([one[name] for one in many]) for name in many[0]}
    answers = []
    for rows_per_pattern in (1, math.inf):
        monkeypatch.setattr(gaussian, "ROWS_PER_PATTERN", rows_per_pattern)
        mapped = torch.func.vmap(lambda one: Gaussian(4).potential(x, one))
        batch = build(
            lambda *v, mapped=mapped: [mapped(dict(zip(stacked, v, strict=True)))], list(stacked.values()), "traced", 1
        )
        answers += [mapped(stacked), *batch(*stacked.values())]
    for answer in answers[1:]:
        assert_alike(answer, answers[0])


def test_rows_in_many_shares_add_up(monkeypatch):
    x, form = gaps(300, 3), form_of(statistics(10, 3))
    weights = normal(300, 10)
    whole = hidden._moments(x[None], form[None], weights[None], True)
    monkeypatch.setattr(hidden, "LEAST_ROWS", 7)
    assert_alike(hidden._moments(x[None], form[None], weights[None], True), whole)


def test_bits_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(hidden, "LEAST_ROWS", 50)
    x, form, before = gaps(2000, 8), form_of(statistics(10, 8)), torch.get_num_threads()
    weights, noise, z = normal(1, 2000, 10), normal(2000, 8), torch.randint(10, (2000,))
    answers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        moments = hidden._moments(x[None], form[None], weights, True)
        answers.append([hidden._normalizer(x[None], form[None]), *moments, hidden._draw(x, form, z, noise)])
    torch.set_num_threads(before)
    assert all(one.equal(two) for one, two in zip(*answers, strict=True))


@pytest.mark.parametrize(("D", "K"), SIZES)
def test_without_kernels_it_is_the_same(monkeypatch, D, K):
    """Other devices pin what is seen; in parts, here of few rows."""
    monkeypatch.setattr(_pinned, "NUMBERS_AT_ONCE", 7 * K * D * D)
    x, form, weights = gaps(40, D), form_of(statistics(K, D)), normal(40, K)
    assert_alike(_pinned.normalizer(x, form), hidden._normalizer(x[None], form[None])[0])
    total, slopes = hidden._moments(x[None], form[None], weights[None], True)
    assert_alike(_pinned.moments(x, form, weights), (total[0], slopes[0]))
    z, noise = torch.randint(K, (40,)), normal(40, D)
    assert_alike(_pinned.draw(x, form, z, noise), hidden._draw(x, form, z, noise))


def test_a_draw_is_the_conditional_mean_and_its_root_times_noise():
    s, x, z = statistics(4, 5), gaps(30, 5), torch.randint(4, (30,))
    form = form_of(s)
    covariance = torch.linalg.inv(-2 * s["precision"])
    location = (covariance @ s["linear"][..., None])[..., 0]
    mean = hidden._draw(x, form, z, torch.zeros(30, 5).double())
    steps = torch.stack([hidden._draw(x, form, z, e.expand(30, 5)) - mean for e in torch.eye(5).double()], -1)
    for n in range(30):
        lost = x[n].isnan()
        wanted, spread = condition(x[n], location[z[n]], covariance[z[n]])
        torch.testing.assert_close(mean[n][lost], wanted)
        torch.testing.assert_close((steps[n] @ steps[n].mT)[lost][:, lost], spread)


def test_a_graph_traced_at_one_pattern_is_right_at_any_other():
    s = statistics(3, 4)
    names = list(s)

    @torch.enable_grad()
    def function(x, *values):
        leaves = [value.detach().requires_grad_() for value in values]
        value = Gaussian(4).potential(x, dict(zip(names, leaves, strict=True)))
        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

    graphs = [build(function, [example, *s.values()], "traced", 1).run for example in (gaps(20, 4), normal(20, 4))]
    for x in (gaps(20, 4), normal(20, 4), torch.full((20, 4), torch.nan).double()):
        for graph in graphs:
            assert_alike(list(graph(x, *s.values())), list(function(x, *s.values())))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_data_that_a_graph_knows_are_looked_at_once(share):
    """Nothing missing: the graph has no integral. Else it has one, and the products of the rows are constants."""
    x, s = normal(20, 4).masked_fill(torch.rand(20, 4) < share, torch.nan), statistics(3, 4)
    batch = build(lambda *v: [Gaussian(4).potential(x, dict(zip(s, v, strict=True)))], list(s.values()), "traced", 1)
    names = [str(node.target) for node in batch.run.graph.nodes]
    assert sum("hidden_normalizer" in name for name in names) == (share > 0)
    assert not any("isnan" in name for name in names)


@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0), (1, 2)])
def test_mapped_over_rows_and_forms_it_is_each_by_itself(dims):
    size = 3
    x = torch.stack([gaps(12, 4) for _ in range(size)], dims[0]) if dims[0] is not None else gaps(12, 4)
    forms = [form_of(statistics(9, 4)) for _ in range(size)]
    form = torch.stack(forms, dims[1]) if dims[1] is not None else forms[0]

    def each(x, form):
        gradient = torch.func.grad(lambda f: hidden_normalizer(x, f).square().sum())
        slope = torch.func.grad(lambda y: hidden_normalizer(y, form).square().sum())
        z = torch.arange(12) % 9
        zero = torch.zeros(12, 4).double()
        return hidden_normalizer(x, form), gradient(form), slope(x), hidden._draw(x, form, z, zero)

    alone = [
        each(*(t if dim is None else t.select(dim, i) for t, dim in zip((x, form), dims, strict=True)))
        for i in range(size)
    ]
    mapped = torch.func.vmap(each, in_dims=dims)(x, form)
    assert_alike(mapped, [torch.stack(one) for one in zip(*alone, strict=True)])
    assert_alike(make_fx(torch.func.vmap(each, in_dims=dims))(x, form)(x, form), mapped)


def test_first_and_second_derivatives_in_rows_and_forms_are_right():
    x, form = gaps(6, 3), form_of(statistics(2, 3))
    lost = x.isnan()

    def function(values, form):
        return hidden_normalizer(torch.where(lost, torch.nan, values), (form + form.mT) / 2)

    inputs = (x.nan_to_num().requires_grad_(), form.clone().requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_a_precision_that_is_not_positive_definite_is_nan_there_and_nowhere_else():
    form = form_of(statistics(3, 2))
    form[1, 0, 0] = 1.0  # the first feature of the second state
    x = torch.tensor([[torch.nan, 0.0], [0.0, torch.nan], [0.0, 0.0]]).double()
    wanted = torch.tensor([[False, True, False], [False] * 3, [False] * 3])
    assert hidden_normalizer(x, form).isnan().equal(wanted)
    assert _pinned.normalizer(x, form).isnan().equal(wanted)


def test_single_precision_is_summed_in_double_and_given_back_single():
    x, form = gaps(30, 4), form_of(statistics(3, 4))
    single = hidden_normalizer(x.float(), form.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), hidden_normalizer(x.float().double(), form.float().double()))
    assert hidden_draw(x.float(), form, torch.zeros(30, dtype=torch.long)).dtype == torch.float32


def test_no_rows_are_no_rows():
    form = form_of(statistics(3, 4)).requires_grad_()
    value = hidden_normalizer(torch.zeros(0, 4).double(), form)
    assert value.shape == (0, 3)
    assert (torch.autograd.grad(value.sum(), form)[0] == 0).all()
