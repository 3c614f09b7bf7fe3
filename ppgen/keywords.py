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
    "components": ("n_components", "num_components", "n_clusters", "k", "K"),
    "states": ("n_states", "num_states", "n_components", "num_components", "k", "K"),
    "features": ("n_features", "num_features", "n_dim", "dim", "emission_dim", "D"),
    "latent": ("n_latent", "latent_dim", "state_dim", "hidden_dim", "k_states"),
    "inputs": ("n_inputs", "num_inputs", "input_dim"),
    "covariance": ("covariance_type", "cov_type"),
    "stickiness": ("kappa", "sticky"),
    "concentration": ("alpha", "weight_concentration_prior"),
}
"""A keyword of ppgen's -> what other libraries call it."""

IN_ORDER = "; what a program takes goes in order"


def known_keywords(who: str, more: str = IN_ORDER) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: `TypeError` for a keyword that the function does not have, with the one that was meant.

    ``more`` ends the message where none is alike. A function that takes any keyword is left as it is.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        known = [name for name, one in parameters.items() if one.kind != one.VAR_POSITIONAL and name != "self"]
        if any(one.kind == one.VAR_KEYWORD for one in parameters.values()):
            return function

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if unknown := [name for name in kwargs if name not in known]:
                raise TypeError(f"{who}: {unknown[0]!r} is not an option; {_advice(unknown[0], known, more)}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _advice(name: str, known: list[str], more: str) -> str:
    meant = [own for own, others in MEANT.items() if own in known and name in others]
    alike = meant or difflib.get_close_matches(name, known, n=1)
    if alike == ["u"]:
        return f"write u= where it is a Model{more}"
    return f"write {alike[0]}=" if alike else f"the options are {', '.join(known)}{more}"
