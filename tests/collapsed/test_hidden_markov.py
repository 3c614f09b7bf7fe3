import numpy as np
import pytest
import torch
from dense import log_normal, log_paths, normal, paths, spd, z_score
from hmmlearn.hmm import GaussianHMM

from ppgen.collapsed import HiddenMarkov
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.emissions import Autoregressive, Categorical, Gaussian
from ppgen.errors import DataError

K, T, D = 3, 5, 2
DRAWS = 20_000


@pytest.fixture
def theta():
    return {"location": 2 * normal(K, D), "precision_cholesky": torch.linalg.cholesky(spd(K, size=D))}


@pytest.fixture
def hmm(theta):
    emission = Gaussian(D)
    initial, transition = normal(K).log_softmax(-1), normal(K, K).log_softmax(-1)
    return HiddenMarkov(initial, transition, emission, emission.family.statistic(theta), (4, T))


@pytest.fixture
def x():
    """Something missing in the middle, at the start, and at the end (shorter sequences); one with nothing seen."""
    x = normal(4, T, D)
    x[0, 1, 0] = x[1, 0] = x[1, 2, 1] = x[2, 3:] = x[3] = torch.nan
    return x


def emitted(theta, x):
    """Log-density of each step under each state, (T, K)."""
    covariance = torch.linalg.inv(theta["precision_cholesky"] @ theta["precision_cholesky"].mT)
    scores = [[log_normal(row, theta["location"][k], covariance[k]) for k in range(K)] for row in x]
    return torch.tensor(scores, dtype=torch.float64)


def joint(hmm, theta, x):
    """Log p(path, x) of every path of one sequence."""
    z = torch.tensor(paths(len(x), K))
    score = emitted(theta, x)[torch.arange(len(x)), z].sum(-1)
    return log_paths(hmm.log_initial, hmm.log_transition, len(x)) + score, z


def sequences(x):
    return [(n, one[:length]) for n, (one, length) in enumerate(zip(x, sequence_lengths(x).tolist(), strict=True))]


def test_evidence_is_the_sum_over_every_path(hmm, theta, x):
    wanted = [
        joint(hmm, theta, one)[0].logsumexp(-1) if len(one) else torch.zeros(()).double() for _, one in sequences(x)
    ]
    torch.testing.assert_close(hmm.log_prob(x), torch.stack(wanted), rtol=1e-10, atol=1e-10)


def test_marginals_mode_and_draws_are_those_of_the_listed_paths(hmm, theta, x):
    """Frequencies of 2,000 draws, where the normal limit holds: z below 5 for 45, false-alarm rate below 3e-5."""
    latents = hmm.latents(x)
    drawn = torch.stack([latents.sample()["z_draw"] for _ in range(2000)])
    for n, one in sequences(x):
        assert latents.marginals["z"][n, len(one) :].isnan().all()
        assert (latents.mode["z_mode"][n, len(one) :] == -1).all()
        assert (drawn[:, n, len(one) :] == -1).all()
        if not len(one):
            continue
        score, z = joint(hmm, theta, one)
        weight = score.softmax(-1)
        marginals = torch.einsum("p,ptk->tk", weight, torch.nn.functional.one_hot(z, K).double())
        torch.testing.assert_close(latents.marginals["z"][n, : len(one)], marginals, rtol=1e-10, atol=1e-10)
        assert latents.mode["z_mode"][n, : len(one)].equal(z[score.argmax()])
        frequency = torch.nn.functional.one_hot(drawn[:, n, : len(one)], K).double().mean(0)
        variance = marginals * (1 - marginals)
        error = (frequency - marginals).abs() / (variance / 2000).sqrt()
        assert (error[variance > 0.01] < 5).all()


def test_every_latent_has_named_axes(hmm, x):
    latents = hmm.latents(x)
    named = {**latents.marginals, **latents.mode, **latents.sample()}
    assert set(named) == {"z", "z_mode", "z_draw"}
    assert all(value.ndim == len(latents.dims[name]) for name, value in named.items())


def test_it_agrees_with_hmmlearn():
    x = np.random.default_rng(0).normal(size=(200, D))
    peer = GaussianHMM(K, "full", init_params="", random_state=0)
    peer.n_features = D
    peer.startprob_, peer.transmat_ = (
        np.array([0.5, 0.2, 0.3]),
        np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0, 0.5, 0.5]]),
    )
    peer.means_, peer.covars_ = np.array([[0.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]), spd(K, size=D).numpy()
    emission = Gaussian(D)
    precision = torch.linalg.inv(torch.tensor(peer.covars_))
    s = emission.family.statistic(
        {"location": torch.tensor(peer.means_), "precision_cholesky": torch.linalg.cholesky(precision)}
    )
    hmm = HiddenMarkov(torch.tensor(peer.startprob_).log(), torch.tensor(peer.transmat_).log(), emission, s)
    data = torch.tensor(x)[None]
    evidence, marginals = peer.score_samples(x)
    assert float(hmm.log_prob(data)[0]) == pytest.approx(evidence, rel=1e-10)
    np.testing.assert_allclose(hmm.latents(data).marginals["z"][0], marginals, atol=1e-9)
    np.testing.assert_array_equal(hmm.latents(data).mode["z_mode"][0], peer.decode(x)[1])


def test_imputation_has_the_moments_of_the_mixture_over_paths(hmm, theta):
    """Three missing entries: z below 5 for their means and squares, false-alarm rate below 4e-6."""
    x = normal(4, D)
    x[1] = x[2, 0] = torch.nan
    score, z = joint(hmm, theta, x)
    covariance = torch.linalg.inv(theta["precision_cholesky"] @ theta["precision_cholesky"].mT)
    location, weight = theta["location"], score.softmax(-1)
    gain = covariance[:, 0, 1] / covariance[:, 1, 1]
    first = location[:, 0] + gain * (x[2, 1] - location[:, 1])
    variance = torch.cat(
        [covariance.diagonal(dim1=-2, dim2=-1), (covariance[:, 0, 0] - gain * covariance[:, 0, 1])[:, None]], -1
    )
    mean = torch.cat([location, first[:, None]], -1)  # (K, 3): both dimensions of step 1, dimension 0 of step 2
    at = torch.stack([z[:, 1], z[:, 1], z[:, 2]], -1)
    means, squares = mean.gather(0, at), (mean**2 + variance).gather(0, at)
    filled = hmm.impute(x.expand(DRAWS, 4, D))
    assert filled[:, ~x.isnan()].equal(x[~x.isnan()].expand(DRAWS, -1))
    missing = filled[:, x.isnan()]
    assert z_score(missing, weight @ means) < 5
    assert z_score(missing**2, weight @ squares) < 5


def test_imputation_ends_where_the_sequence_ends(hmm, x):
    filled = hmm.impute(x)
    exists = torch.arange(T) < sequence_lengths(x)[:, None]
    assert not filled[exists].isnan().any()
    assert filled[~exists].isnan().all()
    complete = normal(1, T, D)
    assert hmm.impute(complete).equal(complete)
    assert hmm.impute(complete) is not complete


def test_a_forecast_is_the_marginal_of_the_steps_that_follow(hmm, theta, x):
    """Means of two steps after sequences of length 5, 3 and 0: z below 5 for 4 means each, false alarms below 1e-5."""
    transition, draws = hmm.log_transition.exp(), 5000
    for n, one in sequences(x):
        first = hmm.log_initial.exp()
        if len(one):
            score, z = joint(hmm, theta, one)
            last = torch.nn.functional.one_hot(z[:, -1], K).double()
            first = score.softmax(-1) @ last @ transition
        wanted = torch.stack([first, first @ transition]) @ theta["location"]
        drawn = hmm.forecast(x[n].expand(draws, T, D), 2)
        assert drawn.shape == (draws, 2, D)
        assert z_score(drawn.flatten(1), wanted.flatten()) < 5


def test_replicates_have_the_marginal_mean_of_every_step(hmm, theta):
    """z below 5 for 10 means: false-alarm rate below 6e-6. The first state emits the first observation."""
    at, means = hmm.log_initial.exp(), []
    for _ in range(T):
        means.append(at @ theta["location"])
        at = at @ hmm.log_transition.exp()
    drawn = hmm.expand((1,)).sample(torch.Size([DRAWS]))
    assert drawn.shape == (DRAWS, 1, T, D)
    assert z_score(drawn[:, 0].flatten(1), torch.stack(means).flatten()) < 5
    assert hmm.sample().shape == (4, T, D)


def test_expected_logarithms_need_not_be_normalised(hmm, theta, x):
    shifted = HiddenMarkov(hmm.log_initial - 2.0, hmm.log_transition - 0.5, hmm.emission, hmm.statistics)
    lengths = sequence_lengths(x)
    moved = hmm.log_prob(x) - torch.where(lengths > 0, 2 + 0.5 * (lengths - 1), 0)
    torch.testing.assert_close(shifted.log_prob(x), moved)
    assert not shifted.sample().isnan().any()


def test_a_move_that_cannot_be_is_never_made():
    """Left to right: zero probabilities are -inf, with a finite gradient."""
    transition = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double().log()
    initial = torch.tensor([1.0, 0.0]).double().log()
    emission = Categorical(2)
    probability = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]).double().requires_grad_()
    hmm = HiddenMarkov(initial, transition, emission, {"log_probability": probability.log()})
    x = torch.tensor([[[0.0], [1.0], [torch.nan], [1.0]]]).double()
    value = hmm.log_prob(x).sum()
    value.backward()
    path = hmm.latents(x).mode["z_mode"][0]
    assert path[0] == 0
    assert (path.diff() >= 0).all()
    assert value.isfinite()
    assert probability.grad.isfinite().all()


def test_autoregressive_latents_come_with_their_frames():
    emission = Autoregressive(D, 2)
    s = emission.family.expected(emission.prior(K))
    hmm = HiddenMarkov(normal(K).log_softmax(-1), normal(K, K).log_softmax(-1), emission, s)
    x = normal(2, 8, D)
    x[0, 3] = torch.nan
    frames = hmm.latents(x).marginals["h"]
    assert frames[~x.isnan()].equal(x[~x.isnan()])
    assert frames.isfinite().all()


def test_only_a_batch_of_sequences_is_a_batch(hmm):
    with pytest.raises(DataError, match=r"HiddenMarkov: one batch dimension \(sequences\), got batch shape \(2, 3\)"):
        hmm.expand((2, 3))
