"""Unknown keywords of an engine, refused with the one that was meant."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["known_keywords"]

P = ParamSpec("P")
R = TypeVar("R")

MEANT = {
    "draws": ("num_samples", "n_samples", "samples", "num_draws", "n_draws"),
    "tune": ("num_warmup", "warmup_steps", "warmup", "n_tune", "burn_in", "burnin"),
    "chains": ("num_chains", "n_chains"),
    "particles": ("num_particles", "n_particles"),
    "max_steps": ("num_steps", "n_steps", "steps", "epochs", "max_epochs", "n_iter", "max_iter", "num_iterations"),
    "n_init": ("restarts", "n_starts", "num_restarts"),
    "lr": ("learning_rate", "step_size"),
    "optimizer": ("optim",),
    "random_seed": ("seed", "random_state", "rng", "rng_key", "generator"),
    "progressbar": ("progress_bar", "progress", "show_progress", "disable_progbar"),
    "compile": ("jit", "jit_compile"),
    "sampler": ("kernel", "nuts_sampler"),
    "target_accept": ("target_accept_prob", "adapt_delta"),
    "max_tree_depth": ("max_treedepth",),
    "start": ("init", "initvals", "init_strategy"),
    "replications": ("num_simulations", "n_replications"),
    "u": ("inputs", "covariates", "exog"),
}
"""A keyword of ppgen's -> what other libraries call it."""


def known_keywords(who: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: `TypeError` for a keyword that the function does not have, with the one that was meant."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_POSITIONAL]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if unknown := [name for name in kwargs if name not in known]:
                raise TypeError(f"{who}: {unknown[0]!r} is not an option; {_advice(unknown[0], known)}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _advice(name: str, known: list[str]) -> str:
    meant = [own for own, others in MEANT.items() if own in known and name in others]
    alike = meant or difflib.get_close_matches(name, known, n=1)
    return f"write {alike[0]}=" if alike else f"the options are {', '.join(known)}; what a program takes goes in order"
