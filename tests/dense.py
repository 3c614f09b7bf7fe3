"""Emissions and hidden Markov models written out: every covariance dense, every path listed."""

import itertools
import math

import torch


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def spd(*batch, size, ridge=0.5):
    root = normal(*batch, size, size)
    return root @ root.mT / size + ridge * torch.eye(size, dtype=torch.float64)


def log_normal(x, mean, covariance):
    """Log-density of the entries of ``x`` that are not NaN under the marginal of a dense Gaussian."""
    seen = ~x.isnan()
    if not seen.any():
        return x.new_zeros(())
    marginal = torch.distributions.MultivariateNormal(mean[seen], covariance[seen][:, seen])
    return marginal.log_prob(x[seen])


def condition(x, mean, covariance):
    """Mean and covariance of the NaN entries of ``x`` given the others."""
    seen = ~x.isnan()
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, ~seen]).mT
    centre = mean[~seen] + gain @ (x[seen] - mean[seen])
    return centre, covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]


def autoregression(path, coefficients, innovation, initial_scale, initial_step=0.3):
    """Mean (T, D) and covariance (T D, T D) of the frames of an autoregression through the states ``path``."""
    D, R = coefficients.shape[-2:]
    lags, T = (R - 1) // D, len(path)
    matrix, offset = torch.eye(T * D, dtype=torch.float64), torch.zeros(T * D, dtype=torch.float64)
    noise = torch.zeros(T * D, T * D, dtype=torch.float64)
    for t, k in enumerate(path):
        now = slice(t * D, (t + 1) * D)
        if t < lags:
            noise[now, now] = (initial_step if t else initial_scale) ** 2 * torch.eye(D, dtype=torch.float64)
            if t:
                matrix[now, slice((t - 1) * D, t * D)] -= torch.eye(D, dtype=torch.float64)
            continue
        noise[now, now] = innovation[k]
        offset[now] = coefficients[k, :, -1]
        for lag in range(lags):
            before = slice((t - 1 - lag) * D, (t - lag) * D)
            matrix[now, before] -= coefficients[k, :, lag * D : (lag + 1) * D]
    inverse = torch.linalg.inv(matrix)
    return (inverse @ offset).reshape(T, D), inverse @ noise @ inverse.mT


def observed(subspace, mean, covariance):
    """Mean (T, F) and covariance (T F, T F) of the features, for frames (T, D) in a subspace (None: the frames)."""
    if subspace is None:
        return mean, covariance
    T = len(mean)
    loading = torch.block_diag(*[subspace.basis * subspace.scale] * T)
    residual = subspace.noise * (torch.eye(len(subspace.mean)) - subspace.basis @ subspace.basis.mT)
    return mean @ (subspace.basis * subspace.scale).mT + subspace.mean, (
        loading @ covariance @ loading.mT + torch.block_diag(*[residual] * T)
    )


def paths(steps, states):
    return list(itertools.product(range(states), repeat=steps))


def log_paths(log_initial, log_transition, steps):
    """Log-probability of every path, in the order of `paths`."""
    scores = []
    for path in paths(steps, len(log_initial)):
        moves = sum((log_transition[a, b] for a, b in itertools.pairwise(path)), torch.zeros(()))
        scores.append(log_initial[path[0]] + moves)
    return torch.stack(scores)


def z_score(draws, mean):
    """Largest deviation of the mean of ``draws`` from ``mean``, in standard errors."""
    return float(((draws.mean(0) - mean).abs() / (draws.std(0) / math.sqrt(len(draws)))).max())
