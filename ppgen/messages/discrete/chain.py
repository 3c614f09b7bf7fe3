r"""Chains of discrete variables.

.. math:: p(z) = \frac1Z\, \exp\Big(a_{z_1} + \sum_{t<T} A^{(t)}_{z_t z_{t+1}} + \sum_t \ell_{t z_t}\Big)

for any log-potentials, normalised or not, ``-inf`` among them. The gradient of :math:`\log Z` holds the expected
counts: of the first state in :math:`a`, of transitions in :math:`A`, of states in :math:`\ell`.

References: Rabiner (1989), "A tutorial on hidden Markov models".
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppgen.messages import _operator as _op
from ppgen.messages.discrete import _dispatch as _discrete

__all__ = ["DiscreteChain", "discrete_chain"]


def discrete_chain(
    log_initial: Float[Tensor, "*#B K"],
    log_transition: Float[Tensor, "*#C K K"],
    log_potential: Float[Tensor, "*#B T K"],
    lengths: Int[Tensor, "*#B"] | None = None,
) -> "DiscreteChain":
    """Chain of discrete variables with these log-potentials; leading dims broadcast.

    Parameters
    ----------
    log_initial : (..., K), added to the first step.
    log_transition : (..., K, K) the same at every step, or (..., T - 1, K, K); ``[..., i, j]`` is from i to j.
    log_potential : (..., T, K). A step without observation has a row of zeros.
    lengths : (...) whole numbers in [0, T]; steps at or after them do not exist. None: all are T.

    Raises
    ------
    ValueError : for shapes that do not fit together, lengths outside [0, T] (which a traced graph takes for 0 or T), or
        potentials that are not floating point.

    Notes
    -----
    A 3-dimensional ``log_transition`` beside a 2-dimensional ``log_potential`` is one per step; where its dims
    could be read both ways (as many batch dims as ``log_potential`` has), it is the same at every step.
    """
    return DiscreteChain(log_initial, log_transition, log_potential, lengths)


class DiscreteChain:
    """The log-normaliser and the posterior of a chain; :func:`discrete_chain` makes it. All is computed on demand.

    A sequence of probability zero has log-normaliser ``-inf``, and marginals and a gradient of zero. NaN in a
    potential comes out as NaN. Expected counts can be differentiated once, by a pass of their own that runs only then.
    """

    def __init__(
        self,
        log_initial: Tensor,
        log_transition: Tensor,
        log_potential: Tensor,
        lengths: Tensor | None = None,
    ) -> None:
        _check(log_initial, log_transition, log_potential)
        steps, states = log_potential.shape[-2:]
        varying = log_transition.dim() > log_potential.dim()
        transition = log_transition if varying else log_transition.unsqueeze(-3)
        if steps == 1 and varying:  # no transition at all: the kernels want one that nobody takes
            transition = torch.cat([transition, transition.new_zeros(*transition.shape[:-3], 1, states, states)], -3)
        parts = [log_initial.shape[:-1], transition.shape[:-3], log_potential.shape[:-2]]
        batch = torch.broadcast_shapes(*parts, () if lengths is None else lengths.shape)
        self.dtype = torch.promote_types(torch.promote_types(log_initial.dtype, transition.dtype), log_potential.dtype)
        self.batch, self.varying, self.steps = batch, varying, steps
        self._value: Tensor | None = None
        self._statistics: tuple[Tensor, ...] | None = None
        rows = batch.numel()
        self._inputs = (
            _flat(log_initial, batch, 1),
            _flat(transition, batch, 3),
            log_potential.double().expand(*batch, steps, states).reshape(rows, steps, states),
            _flat_lengths(lengths, batch, steps, log_potential.device),
        )

    @property
    def log_normalizer(self) -> Float[Tensor, "*B"]:
        """Log of the sum over every path, (...). Its gradient is the expected counts; it has no third derivative."""
        if self._value is None:
            self._value = self._shaped(_op.log_normalizer(_discrete.NAME, *self._inputs))
        return self._value

    def _expected(self, part: int) -> Tensor:
        if self._statistics is None:
            self._statistics = _op.expectations(_discrete.NAME, *self._inputs)
        return self._shaped(self._statistics[part])

    @property
    def marginals(self) -> Float[Tensor, "*B T K"]:
        """Probability of each state at each step, (..., T, K); zeros at or after the length."""
        return self._expected(3)

    @property
    def pairwise(self) -> Float[Tensor, "..."]:
        """Expected transitions: (..., K, K) summed over steps, or (..., T - 1, K, K) if they vary."""
        counts = self._expected(2)
        return counts[..., : self.steps - 1, :, :] if self.varying else counts[..., 0, :, :]

    def pairwise_steps(self) -> Float[Tensor, "*B steps K K"]:
        """Probability of each transition at each step, (..., T - 1, K, K): memory in proportion to T K²."""
        if self.varying or self.steps == 1:
            return self._expected(2)[..., : self.steps - 1, :, :]
        initial, transition, potential, lengths = self._inputs
        varying = transition.expand(-1, self.steps - 1, -1, -1)
        return self._shaped(_op.expectations(_discrete.NAME, initial, varying, potential, lengths)[2])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Int[Tensor, "n *B T"]:
        """``n`` independent draws of the path from the posterior, (n, ..., T) of int64.

        At or after the length the last state is repeated; a sequence of length 0 has state -1 throughout.

        Raises
        ------
        ValueError : where every path has probability zero.
        """
        potential = self._inputs[2]
        shape = (n, *potential.shape[:2])
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64, device=potential.device)
        return _discrete.sample(*self._inputs, uniforms).reshape(n, *self.batch, self.steps)

    def mode(self) -> Int[Tensor, "*B T"]:
        """The most probable path (Viterbi), (..., T) of int64; padded like :meth:`sample`, and raises as it does."""
        return _discrete.mode(*self._inputs).reshape(*self.batch, self.steps)

    def score(self, z: Int[Tensor, "*S T"]) -> Float[Tensor, "*S"]:
        """Log-weight of the paths ``z`` (n, ..., T) or (..., T) before it is normalised, (n, ...) or (...).

        States at or after the length are not looked at. Differentiable in the potentials; less :attr:`log_normalizer`
        it is the log-probability.

        Raises
        ------
        ValueError : for paths of another shape, and states outside [0, K).
        """
        initial, transition, potential, lengths = self._inputs
        rows, steps, states = potential.shape
        exists = torch.arange(steps, device=lengths.device) < lengths[:, None]
        flat = _flat_paths(z, self.batch, exists, states)  # (B, T, n)
        total = torch.where(exists[..., None], potential.gather(2, flat), 0.0).sum(1)
        total = total + torch.where(exists[:, :1], initial.expand(rows, -1).gather(1, flat[:, 0]), 0.0)
        moves = states * flat[:, :-1] + flat[:, 1:]
        each = moves.reshape(rows, transition.shape[1], moves.shape[1] * moves.shape[2] // transition.shape[1])
        added = transition.flatten(-2).expand(rows, -1, -1).gather(2, each).reshape(moves.shape)
        total = total + torch.where(exists[:, 1:, None], added, 0.0).sum(1)
        return total.T.reshape(z.shape[:-1]).to(self.dtype)

    def log_steps(self) -> Float[Tensor, "*B T"]:
        """The term of :attr:`log_normalizer` that each step adds to those before it, (..., T).

        Of a normalised chain this is log p(x_t | x_1, ..., x_{t-1}). Zero at or after the length, and behind a step
        that makes every path impossible, which has ``-inf``. One forward pass, without a gradient.
        """
        return self._shaped(_discrete.steps(*self._inputs))

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(self.batch + flat.shape[1:]).to(self.dtype)


def _check(log_initial: Tensor, log_transition: Tensor, log_potential: Tensor) -> None:
    """Refuse shapes and types that do not fit together."""
    if log_potential.dim() < 2 or 0 in log_potential.shape[-2:]:
        raise ValueError(
            "discrete_chain: log_potential must have shape (..., T, K) with T, K >= 1, "
            f"got {tuple(log_potential.shape)}"
        )
    steps, states = log_potential.shape[-2:]
    dims = log_potential.dim()
    if not 1 <= log_initial.dim() < dims or log_initial.shape[-1] != states:
        raise ValueError(
            f"discrete_chain: log_initial must have shape (..., K={states}) and no more batch dims than "
            f"log_potential {tuple(log_potential.shape)}, got {tuple(log_initial.shape)}"
        )
    expected = (steps - 1, states, states) if log_transition.dim() > dims else (states, states)
    got = tuple(log_transition.shape)
    if log_transition.dim() > dims + 1 or got[-len(expected) :] != expected:
        raise ValueError(
            f"discrete_chain: log_transition must have shape (..., K={states}, K={states}), or with one dim more than "
            f"log_potential {tuple(log_potential.shape)} (..., T-1={steps - 1}, K={states}, K={states}), got {got}"
        )
    for name, t in (("log_initial", log_initial), ("log_transition", log_transition), ("log_potential", log_potential)):
        if not t.is_floating_point():
            raise ValueError(f"discrete_chain: {name} must be floating point, got {t.dtype}; convert it")


def _flat(t: Tensor, batch: torch.Size, event_dims: int) -> Tensor:
    """One batch dim; a tensor that the whole batch shares keeps a single row."""
    event = t.shape[t.dim() - event_dims :]
    t = t.double()
    if t.shape[: t.dim() - event_dims].numel() == 1:
        return t.reshape(1, *event)
    return t.expand(*batch, *event).reshape(batch.numel(), *event)


def _flat_paths(z: Tensor, batch: torch.Size, exists: Tensor, states: int) -> Tensor:
    """Paths as (B, T, n), zeros where nothing exists."""
    event = (*batch, exists.shape[1])
    if tuple(z.shape[-len(event) :]) != event or z.dim() > len(event) + 1:
        raise ValueError(f"discrete_chain: z must have shape {event} or (n, *{event}), got {tuple(z.shape)}")
    flat = torch.where(exists, z.reshape(-1, *exists.shape), 0).movedim(0, -1)
    watched = not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(z))
    if watched and ((flat < 0) | (flat >= states)).any():
        raise ValueError(
            f"discrete_chain: states must lie in [0, K={states}), got {int(flat.min())} to {int(flat.max())}; pass the "
            "lengths that z was drawn with"
        )
    return flat


def _flat_lengths(lengths: Tensor | None, batch: torch.Size, steps: int, device: torch.device) -> Tensor:
    if lengths is None:
        return torch.full((batch.numel(),), steps, dtype=torch.long, device=device)
    if lengths.is_floating_point():
        raise ValueError(f"discrete_chain: lengths must be whole numbers, got {lengths.dtype}; convert them")
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:  # a graph for lengths that are not known yet
        lengths = lengths.clamp(0, steps)
    elif ((lengths < 0) | (lengths > steps)).any():
        raise ValueError(
            f"discrete_chain: lengths must lie in [0, T={steps}], got {int(lengths.min())} to {int(lengths.max())}"
        )
    return lengths.to(device=device, dtype=torch.long).expand(batch).reshape(-1)
