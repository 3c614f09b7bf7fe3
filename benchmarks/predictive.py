"""Answers for all draws at once beside a run of the program for each draw, in one process, float64.

Prints a table and writes it to ``benchmarks/results/predictive.md``: seconds of the processor, the least of three runs,
so that other work on the machine counts little.
"""

import platform
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

from ppgen.model import Model
from ppgen.models.hmm import HMM
from ppgen.predictions import over_draws, predictive, summed_out

RESULT = Path(__file__).parent / "results" / "predictive.md"


class Line(Model):
    data_dims = ("row", "target")
    dims = {"weight": ("input",), "noise": ()}

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(10), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            line = dist.Normal((u @ weight)[:, None], noise).mask(~torch.isnan(x)).to_event(1)
            pyro.sample("x", line, obs=torch.nan_to_num(x))


def seconds(function, runs=3):
    function()
    times = []
    for _ in range(runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def each(answer, draws):
    """The same answers by a run for each draw."""
    return torch.cat(list(over_draws._one_by_one(answer, draws, len(next(iter(draws.values()))), None)))


def compare(answer, draws):
    few = {site: value[:100] for site, value in draws.items()}
    count = len(next(iter(draws.values())))
    return seconds(lambda: each(answer, few), 2) * count / 100, seconds(lambda: predictive.gather(answer, draws))


def regression():
    x, u = torch.randn(1000, 1).double(), torch.randn(1000, 10).double()
    x[::7] = torch.nan
    model = Line()
    draws = predictive.priors(model, x, 4000, u=u)
    yield "log_likelihood", compare(lambda theta: predictive.log_likelihood(model, theta, x, u=u), draws)
    yield "posterior_predictive", compare(lambda theta: predictive.replicate(model, theta, x, u=u), draws)
    yield "impute", compare(lambda theta: predictive.impute(model, theta, x, u=u), draws)


def hidden_markov():
    model, x = HMM(5, 2), torch.randn(1, 2000, 2).double()
    x[0, ::9, 0], x[0, 100:130] = torch.nan, torch.nan
    draws = predictive.priors(model, x, 500)

    def probabilities(theta):
        return summed_out.posterior_of(model, theta, x, None).marginals["z"]

    def drawn(theta):
        return summed_out.posterior_of(model, theta, x, None).sample()["z_draw"]

    yield "latents (probabilities)", compare(probabilities, draws)
    yield "latents (paths)", compare(drawn, draws)
    yield "log_likelihood", compare(lambda theta: predictive.log_likelihood(model, theta, x), draws)
    yield "posterior_predictive", compare(lambda theta: predictive.replicate(model, theta, x), draws)
    yield "forecast of 100 steps", compare(lambda theta: predictive.forecast(model, theta, x, 100), draws)
    yield "impute", compare(lambda theta: predictive.impute(model, theta, x), draws)


def priors():
    for name, model, shape, u in (
        ("regression, N = 1,000", Line(), (1000, 1), torch.randn(1000, 10).double()),
        ("hidden Markov model, T = 2,000", HMM(5, 2), (1, 2000, 2), None),
    ):
        x = torch.zeros(shape, dtype=torch.float64)

        def once(_, model=model, x=x, u=u):
            return predictive.replicate(model, predictive.prior(model, x, u=u), x, u=u)

        yield name, compare(once, {"": torch.empty(1000)})


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "# Predictions for all draws at once",
        "",
        f"By `benchmarks/predictive.py`: {platform.machine()}, torch {torch.__version__}, one thread, seconds of the",
        "processor. A run for each draw is the same answer by the same code, one draw at a time.",
        "",
        "| work | a run for each draw | all at once | ratio |",
        "|---|---|---|---|",
    ]
    works = {
        "regression, N = 1,000, 4,000 draws": regression(),
        "HMM, K = 5, T = 2,000, D = 2, gaps, 500 draws": hidden_markov(),
        "prior predictive, 1,000 draws": priors(),
    }
    for title, rows in works.items():
        for name, (loop, once) in rows:
            lines.append(f"| {title}: {name} | {loop:.2f} | {once:.3f} | {loop / once:.1f} |")
            print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
