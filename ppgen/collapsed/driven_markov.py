r"""Hidden Markov model driven by inputs, as one distribution over whole sequences, its states summed out.

.. math:: z_1 \sim \mathrm{Cat}(\pi), \quad
    P(z_t = j \mid z_{t-1} = i, u_t) \propto P_{ij}\, e^{v_j^\top u_t}, \quad x_t \sim p(x \mid z_t, u_t)

Exact by message passing. The first state emits the first observation. NaN in ``x`` is not observed; trailing NaN means
a shorter sequence. Reference: Bengio & Frasconi (1995).
"""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor

from ppgen.collapsed.base import Collapsed, unexpanded
from ppgen.collapsed.hidden_markov import HiddenMarkovLatents
from ppgen.data.arrays import exists
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.distributions.shape import Shape
from ppgen.emissions.generalized_linear import GeneralizedLinear
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.messages import discrete_chain
from ppgen.messages.discrete.chain import DiscreteChain

__all__ = ["DrivenMarkov"]


@final
class DrivenMarkov(Collapsed):
    """Distribution over ``x`` (N, T, D) given inputs.

    Parameters
    ----------
    log_initial : (K,) log probabilities of the first state.
    log_transition : (K, K), from row to column, where the inputs are zero.
    pull : (K, U'), how the inputs of a step pull towards each state.
    emission : the likelihood, and its parameters ``theta``.
    emission_inputs : (N, T, R) regressors of the likelihood; of `forecast` with a row for each step ahead too.
    transition_inputs : (N, T, U'), alike.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        log_initial: Float[Tensor, " K"],
        log_transition: Float[Tensor, "K K"],
        pull: Float[Tensor, "K V"],
        emission: GeneralizedLinear,
        theta: Mapping[str, Tensor],
        emission_inputs: Float[Tensor, "N T2 R"],
        transition_inputs: Float[Tensor, "N T2 V"],
        steps: int,
    ) -> None:
        self.log_initial, self.log_transition, self.pull = log_initial, log_transition, pull
        self.emission, self.theta = emission, dict(theta)
        self.emission_inputs, self.transition_inputs = emission_inputs, transition_inputs
        shape = torch.Size([len(emission_inputs)]), torch.Size([steps, emission.features])
        super().__init__(*shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "DrivenMarkov":
        return unexpanded(self, batch_shape)

    def summed(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> DiscreteChain:
        potential = self.emission.potential(x, self.theta, self.emission_inputs[:, : x.shape[1]])
        return discrete_chain(self.log_initial, self._every_move(x.shape[1]), potential, lengths=sequence_lengths(x))

    def energy(self, x: Float[Tensor, "N T D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Log density of each sequence; a sequence without observations has the density one."""
        return torch.where(sequence_lengths(x) > 0, self.summed(x, m).log_normalizer, 0.0)

    def log_prob_steps(self, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T"]:
        """Log density of each step given those before it; zero past the end of a sequence."""
        return self.summed(x, {}).log_steps()

    def latents(self, x: Float[Tensor, "N T D"]) -> HiddenMarkovLatents:
        """Posterior of the states given ``x``."""
        return HiddenMarkovLatents(self.summed(x, {}), None, None, sequence_lengths(x))

    def fill(self, x: Float[Tensor, "N T D"], values: Mapping[str, Int[Tensor, "N T"]]) -> Float[Tensor, "N T D"]:
        """``x`` with its NaN entries drawn given a path ``z`` of states; trailing NaN stays."""
        drawn = self.emission.sample(self.theta, self.emission_inputs[:, : x.shape[1]], values["z"].clamp_min(0))
        return torch.where(torch.isnan(x) & exists(x)[..., None], drawn, x)

    def forecast(self, x: Float[Tensor, "N T D"], horizon: int) -> Float[Tensor, "N H D"]:
        """Draw the ``horizon`` steps behind the end of each sequence (all of it, where nothing was observed).

        Raises
        ------
        DataError : inputs that do not reach to the last of them.
        """
        N, T, _ = x.shape
        if self.emission_inputs.shape[1] < T + horizon:
            raise DataError(
                f"{self.emission.who}: inputs of a forecast must have a row for each step seen and ahead, "
                f"{T + horizon}, got {self.emission_inputs.shape[1]}; pass u with horizon={horizon} more steps"
            )
        end, row = sequence_lengths(x), torch.arange(N, device=x.device)
        last = self.draw(x)["z"][row, (end - 1).clamp_min(0)].clamp_min(0)
        ahead = end[:, None] + torch.arange(horizon, device=x.device)
        moves = self._moves(0, T + horizon)[row[:, None], ahead]
        first = torch.where((end > 0)[:, None], moves[row, 0, last], self.log_initial)
        potential = first.new_zeros(N, horizon, len(self.log_initial))
        z = discrete_chain(first, moves[:, 1:], potential).sample(1)[0]
        return self.emission.sample(self.theta, self.emission_inputs[row[:, None], ahead], z)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N T D"]:
        """Replicated data: fresh paths of states, and their observations."""
        (N,), (T, D), count = self.batch_shape, self.event_shape, torch.Size(sample_shape).numel()
        potential = self.log_initial.new_zeros(N, T, len(self.log_initial))
        z = discrete_chain(self.log_initial, self._every_move(T), potential).sample(count)
        drawn = [self.emission.sample(self.theta, self.emission_inputs[:, :T], path) for path in z]
        return torch.stack(drawn).reshape(*sample_shape, N, T, D)

    def _every_move(self, steps: int) -> Float[Tensor, "*NT K K"]:
        """Log probabilities of all moves; the same matrix at every step where no input drives them."""
        return self._moves(1, steps) if self.pull.shape[-1] else self.log_transition.log_softmax(-1)

    def _moves(self, begin: int, end: int) -> Float[Tensor, "N steps K K"]:
        """Log probabilities of the moves into steps ``begin`` to ``end``."""
        drive = self.transition_inputs[:, begin:end] @ self.pull.mT
        return (self.log_transition + drive[..., None, :]).log_softmax(-1)
