"""Ten posteriors of posteriordb (BSD-3-Clause) as plain Pyro programs, and their reference draws in the same sites."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppgen.messages import discrete_chain


class Posterior(NamedTuple):
    """A program, what it is called with, and what is known of its posterior."""

    name: str
    program: Callable[..., None]
    args: tuple[Any, ...]
    reference: dict[str, Any]
    draws: dict[str, Tensor]  # the reference's parameters, by its names, each (1000,)

    @property
    def sites(self) -> dict[str, Tensor]:
        """Reference draws of the program's own sites, {site: (1000, *shape)}."""
        found = _gather(self.draws)
        if "theta" in found and "tau" in found:  # eight schools: the program is not centred
            found["effect"] = (found.pop("theta") - found["mu"][:, None]) / found["tau"][:, None]
        return found


def parameters(sites: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws {site: (..., *shape)} under the reference's names, each (...): the inverse of `Posterior.sites`."""
    if "effect" in sites:
        theta = sites["mu"][..., None] + sites["tau"][..., None] * sites["effect"]
        sites = {"theta": theta, "mu": sites["mu"], "tau": sites["tau"]}
    batch = min(value.ndim for value in sites.values())
    flat = {}
    for site, value in sites.items():
        if site in VECTORS and value.ndim > 2:
            flat |= {f"{site}[{i + 1}]": value[..., i] for i in range(value.shape[-1])}
        else:
            flat[site] = value
    assert all(value.ndim <= max(batch, 2) for value in flat.values())
    return flat


VECTORS = ("beta", "mu", "sigma", "theta", "theta1", "theta2", "phi", "lambda")


def autoregression(y, lags):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = y.unfold(0, lags, 1)[:-1].flip(-1)
    with pyro.plate("time", len(past)):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[lags:])


def arma(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error = y - mu - phi * torch.cat([mu[None], y[:-1]])
    # error_t = residual_t - theta error_{t-1}: the inverse of 1 + theta B is the product of 1 + (-theta B)^(2^j).
    power, shift = -theta, 1
    while shift < len(y):
        error = error + power * torch.cat([error.new_zeros(shift), error[:-shift]])
        power, shift = power * power, 2 * shift
    with pyro.plate("time", len(y)):
        pyro.sample("error", dist.Normal(0.0, sigma), obs=error)


def two_exponentials(u, v, alpha):
    theta = torch.stack([pyro.sample(f"theta{k + 1}", dist.Dirichlet(alpha[k])) for k in range(2)])
    phi = pyro.sample("phi", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    rate = pyro.sample("lambda", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    centre = torch.tensor([0.0, 3.0])
    pyro.factor("prior", dist.Normal(centre, 1.0).log_prob(phi).sum() + dist.Normal(centre, 1.0).log_prob(rate).sum())
    emitted = dist.Exponential(phi).log_prob(u[:, None]) + dist.Exponential(rate).log_prob(v[:, None])
    pyro.factor("data", discrete_chain(torch.zeros(2), theta.log(), emitted).log_normalizer)


def two_normals(y):
    theta = torch.stack([pyro.sample(f"theta{k + 1}", dist.Dirichlet(torch.ones(2))) for k in range(2)])
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    pyro.factor("prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emitted = dist.Normal(mu, 1.0).log_prob(y[:, None])
    pyro.factor("data", discrete_chain(torch.zeros(2), theta.log(), emitted).log_normalizer)


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def regression(X, y, coefficients, scale):
    """``coefficients`` and ``scale`` make priors; None is flat."""
    flat = dist.ImproperUniform(constraints.real, (), (X.shape[1],)).to_event(0)
    beta = pyro.sample("beta", coefficients().expand([X.shape[1]]).to_event(1) if coefficients else flat)
    sigma = pyro.sample("sigma", scale() if scale else dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def mixture(y):
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    _mixture(y, mu)


def unordered_mixture(y):
    """The same without the order: two modes, each with half of the mass."""
    _mixture(y, pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1)))


def _mixture(y, mu):
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def _kidiq(data):
    school, iq = data["mom_hs"], data["mom_iq"]
    X = torch.stack([torch.ones_like(iq), school, iq, school * iq], -1)
    return regression, (X, data["kid_score"], None, lambda: dist.HalfCauchy(2.5))


def _mesquite(data):
    logs = [data[name].log() for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    X = torch.stack([torch.ones_like(logs[0]), *logs, data["group"]], -1)
    return regression, (X, data["weight"].log(), None, None)


def _nes(data):
    ages = [(data["age_discrete"] == age).double() for age in (2, 3, 4)]
    rest = [data[name] for name in ("educ1", "gender", "income")]
    X = torch.stack([torch.ones_like(rest[0]), data["real_ideo"], data["race_adj"], *ages, *rest], -1)
    return regression, (X, data["partyid7"], None, None)


def _blr(data):
    return regression, (data["X"], data["y"], lambda: dist.Normal(0.0, 10.0), lambda: dist.HalfNormal(10.0))


CASES: dict[str, Callable[[dict[str, Tensor]], tuple[Callable[..., None], tuple[Any, ...]]]] = {
    "arK-arK": lambda data: (autoregression, (data["y"], 5)),
    "arma-arma11": lambda data: (arma, (data["y"],)),
    "bball_drive_event_0-hmm_drive_0": lambda data: (two_exponentials, (data["u"], data["v"], data["alpha"])),
    "eight_schools-eight_schools_noncentered": lambda data: (eight_schools, (data["y"], data["sigma"])),
    "hmm_example-hmm_example": lambda data: (two_normals, (data["y"],)),
    "kidiq-kidscore_interaction": _kidiq,
    "low_dim_gauss_mix-low_dim_gauss_mix": lambda data: (mixture, (data["y"],)),
    "mesquite-logmesquite": _mesquite,
    "nes1980-nes": _nes,
    "sblrc-blr": _blr,
}


def folder() -> Path:
    """Where the references lie: beside the recordings that PPGEN_DATA names."""
    recordings = os.environ.get("PPGEN_DATA")
    found = Path(recordings).resolve().parent / "posteriordb" if recordings else None
    if found is None or not found.is_dir():
        pytest.skip(
            "PPGEN_DATA must name a folder beside which posteriordb lies: these tests read reference posteriors"
        )
    return found


def load(name: str) -> Posterior:
    """One posterior, with its data and its reference."""
    place = folder() / name
    data = {key: _tensor(value) for key, value in json.loads((place / "data.json").read_text()).items()}
    program, args = CASES[name](data)
    reference = json.loads((place / "reference.json").read_text())
    kept = json.loads((place / "draws_1000.json").read_text())
    columns = torch.tensor(kept["draws"], dtype=torch.float64).T
    return Posterior(name, program, args, reference, dict(zip(kept["names"], columns, strict=True)))


def _gather(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """``beta[1]``, ``beta[2]``, ... stacked as ``beta``."""
    found: dict[str, list[Tensor]] = {}
    for name, value in draws.items():
        found.setdefault(re.sub(r"\[\d+\]", "", name), []).append(value)
    single = {name for name in draws if "[" not in name}
    return {name: values[0] if name in single else torch.stack(values, -1) for name, values in found.items()}


def _tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
