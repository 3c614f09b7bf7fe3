"""Gaussian frames that are linear in a latent vector and in known regressors: forms, one filtering step, draws."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.emissions.emission import holds_somewhere
from ppgen.emissions.quadratic import homogeneous, marginalize
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.regression import Regression

__all__ = [
    "draw_frames",
    "draw_onwards",
    "frames",
    "known_ahead",
    "known_regressors",
    "observed",
    "seen_frames",
    "without",
]


def known_regressors(u: Tensor | None, like: Float[Tensor, "N T _"]) -> Float[Tensor, "N T J"]:
    """Regressors of every step that are known: the inputs (N, T, U) or (N, U), where there are any, and a one."""
    one = like.new_ones(*like.shape[:-1], 1)
    if u is None:
        return one
    u = u.to(like)
    u = u[:, None].expand(-1, like.shape[1], -1) if u.ndim == 2 else u[:, : like.shape[1]]
    return torch.cat([u, one], -1)


def seen_frames(
    emission: Regression, s: Natural, x: Float[Tensor, "N T D"], known: Float[Tensor, "N T J"], L: int
) -> tuple[Tensor, Float[Tensor, "N T L"], Float[Tensor, "N T"]]:
    """Log density of what is seen of each frame, as coefficients of h h' and of h, and the rest; for one state.

    The first has no axes of rows and steps where nothing is missing.
    """
    missing, D = torch.isnan(x), emission.outputs
    whole = holds_somewhere(missing) is False
    value = x if whole else torch.where(missing, 0.0, x)
    if whole:
        P, linear, Q, constant = emission.form(s)
        return frames(value, known, (P, linear, Q), constant, L, diagonal=not emission.full)
    if emission.full:
        P, linear, Q, constant = emission.form(s)
        form, constant = without(homogeneous(P, linear, Q), constant, missing)
        return frames(value, known, (form[..., :D, :D], 2 * form[..., :D, D:], form[..., D:, D:]), constant, L)
    s, seen = emission.each(s), (~missing).to(value)
    Q = (seen @ s["quadratic"].flatten(-2)).unflatten(-1, s["quadratic"].shape[-2:])
    parts = torch.diag_embed(s["precision"][..., 0, 0]), s["linear"][..., 0, :], Q
    return frames(value, known, parts, seen @ (s["log_det"] - LOG_2PI / 2), L, diagonal=True)


def draw_frames(
    A: Float[Tensor, "*NT D R"],
    precision: Float[Tensor, "*NT D D"],
    x: Tensor,
    regressors: Float[Tensor, "N T R"],
    *,
    diagonal: bool,
) -> Float[Tensor, "N T D"]:
    """Draw the NaN entries of ``x`` given the regressors and the entries that were observed.

    With a ``diagonal`` precision they do not depend on these, nor on each other.
    """
    mean = _apply(A.mT, regressors)
    hidden = torch.isnan(x)
    if diagonal:
        noise = torch.randn_like(mean) * precision.diagonal(dim1=-2, dim2=-1).rsqrt()
        return torch.where(hidden, mean + noise, x)
    inside = hidden[..., :, None] & hidden[..., None, :]
    eye = torch.eye(x.shape[-1], dtype=precision.dtype, device=precision.device)
    root = torch.linalg.cholesky(torch.where(inside, precision, eye))
    apart = torch.where(hidden, 0.0, x - mean)
    pull = torch.where(hidden, (precision @ apart[..., None])[..., 0], 0.0)
    noise = torch.linalg.solve_triangular(root.mT, torch.randn_like(mean)[..., None], upper=True)
    drawn = mean + (noise - torch.cholesky_solve(pull[..., None], root))[..., 0]
    return torch.where(hidden, drawn, x)


def known_ahead(
    who: str, u: Tensor | None, like: Tensor, end: Int[Tensor, " N"], steps: int, horizon: int
) -> Float[Tensor, "N H J"]:
    """Known regressors of the ``horizon`` steps that follow the ``end`` of each sequence of at most so many ``steps``.

    Raises
    ------
    DataError : inputs that do not reach to the last of them.
    """
    if u is not None and u.ndim == 3 and u.shape[1] < steps + horizon:
        raise DataError(
            f"{who}: inputs of a forecast must have a row for each step seen and ahead, {steps + horizon}, got "
            f"{u.shape[1]}; pass u with horizon={horizon} more steps"
        )
    known = known_regressors(u, like.new_empty(len(end), steps + horizon, 0))
    ahead = end[:, None] + torch.arange(horizon, device=end.device)
    return known.gather(1, ahead[..., None].expand(-1, -1, known.shape[-1]))


def draw_onwards(
    A: Float[Tensor, "*NH L R"], noise: Float[Tensor, "N H L"], h: Float[Tensor, "N L"], known: Tensor, fresh: Tensor
) -> Float[Tensor, "N H L"]:
    """Draw the states that follow ``h`` by coefficients of all steps or of each, from the first one on if ``fresh``.

    Step by step, for the precision of a chain that nothing observes is all but singular where its dynamics grow.
    """
    first, states = torch.randn_like(h), []
    for t in range(known.shape[1]):
        own = A if A.dim() == 2 else A[:, t]
        following = _apply(own.mT, torch.cat([h, known[:, t]], -1)) + noise[:, t]
        h = torch.where(fresh[:, None], first, following) if t == 0 else following
        states.append(h)
    return torch.stack(states, 1)


def observed(
    x: Float[Tensor, "N D"],
    mean: Float[Tensor, "N D"],
    cross: Float[Tensor, "N D L"],
    C: Float[Tensor, "D L"],
    noise: Tensor,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N L"], Float[Tensor, "N L L"]]:
    """Log density of what is seen of a frame; how that moves the state's mean, and what it takes off its covariance.

    ``mean`` is the frame's, ``cross`` its covariance with the state; entries that are missing are pinned.
    """
    seen = ~torch.isnan(x)
    both = seen[..., :, None] & seen[..., None, :]
    eye = torch.eye(x.shape[-1], dtype=noise.dtype, device=noise.device)
    root = torch.linalg.cholesky(torch.where(both, cross @ C.mT + noise, eye))
    apart = torch.where(seen, x - mean, 0.0)[..., None]
    white = torch.linalg.solve_triangular(root, torch.cat([apart, cross * seen[..., None]], -1), upper=False)
    residual, link = white[..., :1], white[..., 1:]
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    count = seen.sum(-1).to(mean)  # a whole number times a float would be single precision
    score = -0.5 * residual.square().sum((-1, -2)) - log_det - count * (LOG_2PI / 2)
    return score, (link.mT @ residual)[..., 0], link.mT @ link


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    """``matrix' v`` for one matrix, or one for each vector."""
    return v @ matrix if matrix.dim() == 2 else (v[..., None, :] @ matrix)[..., 0, :]


def frames(
    x: Tensor, known: Tensor, form: tuple[Tensor, Tensor, Tensor], constant: Tensor, L: int, *, diagonal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of h h' and h, and the rest, of ``x' P x + x' M r + r' Q r + c`` per frame, r = (h, known)."""
    P, M, Q = form
    pull, known_pull = _apply(M, x).split([L, known.shape[-1]], -1)
    slope = pull + 2 * _apply(Q[..., L:, :L], known)
    own = (x.square() @ P.diagonal() if diagonal else (_apply(P, x) * x).sum(-1)) + constant
    own = own + (known_pull * known).sum(-1) + (_apply(Q[..., L:, L:], known) * known).sum(-1)
    return Q[..., :L, :L], slope, own


def without(form: Float[Tensor, "W W"], constant: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """The quadratic form over (x, r) with the missing entries of x integrated out, and its constant, for each frame.

    A frame without observations has the factor one.
    """
    if not missing.any():
        return form.expand(*missing.shape[:-1], *form.shape), constant.expand(missing.shape[:-1])
    reduced, offset = marginalize(form[None], missing.flatten(0, -2))
    frames, seen = missing.shape[:-1], (~missing.all(-1)).to(form)
    reduced, offset = reduced[:, 0].unflatten(0, frames), offset[:, 0].unflatten(0, frames)
    return reduced * seen[..., None, None], (constant + offset) * seen
