r"""Stochastic variational inference: the model's guide, raised towards the posterior by stochastic gradients.

The loss is minus the evidence lower bound; what the model sums out is not sampled. Adam takes the steps. With
``early_stopping`` the mean loss of each window of steps is compared with that of the one before; when it has not fallen
by more than its own noise, the learning rate is divided by ten, and after the third time the fit has converged.
"""

import hashlib
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from tqdm import tqdm

from ppgen.data.arrays import as_observations, to_tensor
from ppgen.errors import DataError, FileError, FitError
from ppgen.inference.guides import copy_model, draw_guide, first_bad_site, trainable
from ppgen.inference.predictive import isolated, missing_share
from ppgen.model import Model
from ppgen.results.arguments import as_inputs, require_at_least
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Draws
from ppgen.results.rebuild import describe
from ppgen.results.storage import read_tensors, write_tensors
from ppgen.rng import private_stream

__all__ = ["fit"]

WINDOW, DECAYS = 200, 2  # steps whose mean loss is compared; times the learning rate falls before the end


@dataclass(frozen=True)
class Options:
    """What a run is, but for how long it goes on."""

    lr: float
    batch_size: int | None
    particles: int
    early_stopping: bool


def fit(
    model: Model,
    x: object,
    *,
    u: object = None,
    max_steps: int = 10_000,
    lr: float = 0.01,
    batch_size: int | None = None,
    particles: int = 1,
    draws: int = 1000,
    early_stopping: bool = True,
    random_seed: int | None = None,
    progressbar: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
) -> Fit:
    """Fit the guide of ``model``.

    Parameters
    ----------
    model : it is not changed; the fit holds a copy.
    x : observations, anything :func:`ppgen.data.as_observations` takes; NaN is not observed.
    u : inputs of the model.
    max_steps : at most this many gradient steps.
    lr : learning rate at the start.
    batch_size : rows or sequences a step; None uses all of them.
    particles : draws of the guide a step.
    draws : draws of the trained guide to keep.
    early_stopping : stop when the smoothed loss has settled; without it all steps are taken, at one learning rate.
    checkpoint : folder; the run is saved there and goes on from there, bit for bit, if it holds this fit.
    checkpoint_every : steps between saves.

    Returns
    -------
    Fit
        Its posterior is `Draws` (one chain of independent draws of the guide).

    Raises
    ------
    DataError : data or options that cannot be used.
    FitError : a loss or gradient that is not finite, or a guide that does not fit the model.
    FileError : a checkpoint of another fit.
    """
    for name, value in {"max_steps": max_steps, "particles": particles, "draws": draws}.items():
        require_at_least(f"svi: {name}", value, 1)
    if not 0 < lr < math.inf:
        raise DataError(f"svi: lr must be positive, got {lr}; 0.01 is usual")
    observations = as_observations(x, dims=model.data_dims)
    data = to_tensor(observations)
    inputs = as_inputs("svi", u, data)
    model.check(data)
    if batch_size is not None and not 1 <= batch_size <= len(data):
        raise DataError(f"svi: batch_size must be between 1 and the {len(data)} rows of x, got {batch_size}")
    model, began = copy_model(model), time.perf_counter()
    options = Options(lr, batch_size, particles, early_stopping)
    saved = None if checkpoint is None else Path(checkpoint) / "svi.safetensors"
    with private_stream(random_seed) as seed, isolated():
        run = Run(model, data, inputs, options, _identity(model, data, inputs, options, random_seed))
        run.resume(saved)
        interrupted = _train(run, max_steps, saved, checkpoint_every, progressbar)
        sites, log_q = draw_guide(model, data, inputs, draws)
    posterior = Draws({name: value[None] for name, value in sites.items()}, {"log_q": log_q[None]})
    model.__dict__.pop("_mean_field", None)  # it keeps the data it was set up with
    attrs = {
        "engine": "svi",
        "random_seed": seed,
        "converged": run.converged,
        "interrupted": interrupted,
        "seconds": time.perf_counter() - began,
        "missing_share": missing_share(model, data),
    }
    return fit_result(model, posterior, run.history(), attrs, observations)


class Run:
    """A run under way: parameters, optimiser, and the record of losses."""

    def __init__(self, model: Model, x: Tensor, u: Tensor | None, options: Options, identity: str) -> None:
        self.model, self.x, self.u, self.options, self.identity = model, x, u, options, identity
        self.elbo = Trace_ELBO(num_particles=options.particles)
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.decays = 0
        self.decided = 0  # steps at the last decision about the learning rate
        self.parameters = trainable(model, x, u)
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=options.lr)

    @property
    def converged(self) -> bool:
        """Whether the loss has settled at every learning rate."""
        return self.decays > DECAYS

    def step(self, of: int) -> None:
        """One gradient step.

        Raises
        ------
        FitError : the loss or a gradient is not finite; the parameters are those before the step.
        """
        stream = torch.get_rng_state()
        x, u = self._batch()
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN")  # said below, with the step and the site
            loss = self.elbo.differentiable_loss(self.model.model, self.model.guide, x, u=u, total=len(self.x))
        value = float(loss.detach())
        if not math.isfinite(value):
            torch.set_rng_state(stream)
            raise self._lost(f"the loss is {value}", first_bad_site(self.model, *self._batch()), of)
        loss.backward()
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise self._lost(f"the gradient of {name} is not finite", "", of)
        self.optimizer.step()
        self.losses.append(value)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        if self.options.early_stopping:
            self._decide()

    def history(self) -> pd.DataFrame:
        """Step, bound in nats (an estimate), learning rate."""
        steps = np.arange(1, len(self.losses) + 1)
        return pd.DataFrame({"step": steps, "elbo": -np.asarray(self.losses), "lr": self.rates})

    def save(self, path: Path | None) -> None:
        """Write a checkpoint, where there is a place for it."""
        if path is None:
            return
        tensors = {f"parameter/{name}": value for name, value in self.parameters.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        tensors |= {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "rates": torch.tensor(self.rates, dtype=torch.float64),
            "stream": torch.get_rng_state(),
        }
        write_tensors(path, tensors, {"identity": self.identity, "decays": self.decays, "decided": self.decided})

    def resume(self, path: Path | None) -> None:
        """Go on from a checkpoint, if there is one.

        Raises
        ------
        FileError : it cannot be trusted, or holds another fit.
        """
        if path is None or not path.exists():
            return
        content, tensors = read_tensors(path)
        if content.get("identity") != self.identity:
            raise FileError(
                f"svi: {path} must hold this fit, it holds one of another model, data or options; use another folder"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.losses, self.rates = tensors["losses"].tolist(), tensors["rates"].tolist()
        self.decays, self.decided = content["decays"], content["decided"]
        self._set_rate()
        torch.set_rng_state(tensors["stream"])

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        if self.options.batch_size is None:
            return self.x, self.u
        index = torch.randperm(len(self.x))[: self.options.batch_size]
        return self.x[index], None if self.u is None else self.u[index]

    def _decide(self) -> None:
        """Lower the learning rate when the last window's mean loss has not fallen by more than its noise."""
        if len(self.losses) - self.decided < 2 * WINDOW or (len(self.losses) - self.decided) % WINDOW:
            return
        before, recent = np.asarray(self.losses[-2 * WINDOW :]).reshape(2, WINDOW)
        noise = math.sqrt((before.var(ddof=1) + recent.var(ddof=1)) / WINDOW)
        if before.mean() - recent.mean() <= noise:
            self.decays, self.decided = self.decays + 1, len(self.losses)
            self._set_rate()

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * 0.1 ** min(self.decays, DECAYS)

    def _lost(self, what: str, where: str, of: int) -> FitError:
        number = len(self.losses) + 1
        advice = f"try lr < {self.options.lr / 5:g}, and features of about unit variance"
        return FitError(f"svi: {what} at step {number} of {of}{where}; {advice}")


def _train(run: Run, max_steps: int, saved: Path | None, every: int, progressbar: bool) -> bool:
    """Step until settled or out of steps; whether it was interrupted. The checkpoint keeps the last good state."""
    with tqdm(total=max_steps, initial=len(run.losses), desc="svi", disable=not progressbar, delay=1) as bar:
        try:
            while len(run.losses) < max_steps and not run.converged:
                run.step(max_steps)
                bar.update()
                if len(run.losses) % every == 0:
                    bar.set_postfix_str(f"ELBO {-run.losses[-1]:,.1f}", refresh=False)
                    run.save(saved)
        except KeyboardInterrupt:
            return True
    run.save(saved)
    return False


def _identity(model: Model, x: Tensor, u: Tensor | None, options: Options, random_seed: int | None) -> str:
    """Digest of what makes two runs the same run."""
    description, tensors = describe(model)
    digest = hashlib.sha256(repr((description, asdict(options), random_seed, torch.__version__)).encode())
    for value in [x, u, *tensors.values()]:
        if value is not None:
            digest.update(repr(tuple(value.shape)).encode() + value.numpy(force=True).tobytes())
    return digest.hexdigest()
