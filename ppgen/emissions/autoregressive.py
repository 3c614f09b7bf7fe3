r"""Autoregressive Gaussian emissions: within a state, a vector autoregression.

.. math::
    \Lambda_k \sim \mathcal W(\nu, \Psi^{-1}), \quad A_k \mid \Lambda_k \sim \mathcal{MN}(M, \Lambda_k^{-1}, V), \quad
    h_t \mid z_t = k \sim \mathcal N(A_k [h_{t-1}; \dots; h_{t-L}; 1], \Lambda_k^{-1})

with :math:`M = [I, 0, \dots, 0]` (a random walk). The first L frames are a random walk whatever the state:
:math:`h_1 \sim \mathcal N(0, \sigma_0^2 I)`, then :math:`h_t \sim \mathcal N(h_{t-1}, \sigma_1^2 I)`. The observation
is ``h`` itself, or lies in a :class:`~ppgen.emissions.subspace.Subspace` of many features with coordinates ``h``.

**Missing frames.** An emission whose lag is missing has no closed form. For training, missing entries are latent, with
an exact Gaussian posterior ``q(h)`` given the weights of the states, in mean field with ``q(z)``: the evidence becomes
a lower bound with a gradient, which equals it when nothing is missing or K = 1. Answers about states, missing frames
and the evidence do not use the mean field, which is far too sure of the states across a gap: they follow paths of
states and sum the frames out along each (:mod:`ppgen.messages.switching.filter`). A recording whose last frames are all
missing counts as a shorter recording.

References: Fox et al. (2011), "Bayesian nonparametric inference of switching dynamic linear models", §II and IV;
Wiltschko et al. (2015); Ghahramani & Hinton (2000) for the mean field between discrete and Gaussian latents.
"""

from dataclasses import replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.data.arrays import lengths as sequence_lengths
from ppgen.emissions._simulation import simulate
from ppgen.emissions.emission import Emission
from ppgen.emissions.frames import Frames, RowEvidence
from ppgen.emissions.gap import GapBlock, Gaps
from ppgen.emissions.quadratic import coefficients, homogeneous, scores
from ppgen.emissions.subspace import Subspace
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart
from ppgen.families.regression import OF_ONE
from ppgen.messages.switching.filter import Regimes, Switching

__all__ = ["Autoregressive"]


@final
class Autoregressive(Emission):
    """Vector autoregression of order ``lags`` in each state.

    Parameters
    ----------
    features : features of the observation, F.
    lags : order of the autoregression, at least 1.
    covariance : ``"full"`` or ``"diagonal"`` innovations.
    subspace : where the observation lies; None models the features themselves (then D = F).
    noise : prior guess of the innovation variance, in squared units of the latent.
    strength : prior precision of the coefficients around the random walk.
    initial_scale : standard deviation of the first frame.
    initial_step : standard deviation of the steps between the first ``lags`` frames.
    """

    prior_scales: ClassVar[tuple[str, ...]] = ("noise", "strength")

    def __init__(
        self,
        features: int,
        lags: int = 1,
        *,
        covariance: str = "full",
        subspace: Subspace | None = None,
        noise: float = 0.1,
        strength: float = 1.0,
        initial_scale: float = 3.0,
        initial_step: float = 0.3,
    ) -> None:
        if features < 1 or lags < 1:
            raise DataError(f"Autoregressive: features and lags must be at least 1, got {features} and {lags}")
        if covariance not in ("full", "diagonal"):
            raise DataError(f'Autoregressive: covariance must be "full" or "diagonal", got {covariance!r}')
        if subspace is not None and len(subspace.mean) != features:
            raise DataError(f"Autoregressive: subspace has {len(subspace.mean)} features, the emission {features}")
        if not all(value > 0 for value in (noise, strength, initial_scale, initial_step)):
            raise DataError(
                "Autoregressive: noise, strength, initial_scale and initial_step must be positive, "
                f"got {noise}, {strength}, {initial_scale} and {initial_step}"
            )
        self.features, self.lags, self.covariance, self.subspace = features, lags, covariance, subspace
        self.noise, self.strength = noise, strength
        self.initial_scale, self.initial_step = initial_scale, initial_step
        self.width = features if subspace is None else subspace.basis.shape[1]
        self.family = MatrixNormalInverseWishart()

    @property
    def config(self) -> dict[str, Any]:
        names = ("features", "lags", "covariance", "subspace", "noise", "strength", "initial_scale", "initial_step")
        return {name: getattr(self, name) for name in names}

    @property
    def prior_units(self) -> tuple[float, float] | None:
        return (self.noise, 0.0) if self.subspace is None else None

    @property
    def closed(self) -> bool:
        return False

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        axis = "feature" if self.subspace is None else "component"
        if self.covariance == "full":
            return {"coefficients": (axis, "regressor"), "precision_cholesky": (axis, f"other_{axis}")}
        return {"coefficients": (axis, OF_ONE[0], "regressor"), "precision_cholesky": (axis, *OF_ONE)}

    def prior(self, states: int, **scales: Tensor) -> Natural:
        D, R = self.width, self.lags * self.width + 1
        dtype = torch.float64
        noise, strength = scales.get("noise", self.noise), scales.get("strength", self.strength)
        walk, size, batch = torch.eye(D, R, dtype=dtype), D, torch.Size([states])
        if self.covariance == "diagonal":
            walk, size, batch = walk[:, None], 1, torch.Size([states, D])
        return self.family.natural(
            location=walk.expand(states, *walk.shape),
            column_precision=(strength * torch.eye(R, dtype=dtype)).expand(*batch, R, R),
            scale=(noise * torch.eye(size, dtype=dtype)).expand(*batch, size, size),
            degrees=torch.full(batch, size + 2.0, dtype=dtype),
        )

    def potential(self, x: Tensor, s: Natural, frames: Frames | None = None) -> Tensor:
        frames = frames or self.frames(x)
        form = self._form(s)
        total = self._known_scores(frames.value, form, s)
        if frames.latent is not None:
            m = frames.moments or frames.latent.solved(self.given(frames.latent, s))[0]
            total = torch.index_add(total, 0, frames.latent.rows, m["windows"] @ coefficients(form).mT)
        return self._counted(total, frames.value, frames.lengths)

    def frames(self, x: Tensor) -> Frames:
        evidence, known, lengths = self._evidence(x)
        value = evidence.value.reshape(known.shape)
        latent = None
        if not known.all():
            value = torch.where(known, value, 0.0)
            gaps = Gaps.build(known, value, self.lags)
            latent = GapBlock(gaps, lengths, *self._said(gaps, evidence, known.shape[1], lengths))
        constant = evidence.constant.reshape(known.shape[:2]).sum(-1) + self._each_first_frame(value, lengths).sum(-1)
        return Frames(value, lengths, constant, latent)

    def given(self, latent: GapBlock, s: Natural, weights: Tensor | None = None) -> Natural:
        forms = coefficients(self._form(s).detach())
        if weights is None:
            return {"windows": forms.mean(0).expand(len(latent.rows), -1)}
        return {"windows": weights.flatten(0, 1)[latent.rows] @ forms}

    def switching(self, x: Tensor, s: Natural) -> tuple[Switching, Tensor] | None:
        evidence, known, lengths = self._evidence(x)
        if known.all():
            return None
        N, T, D = known.shape
        value = torch.where(known, evidence.value.reshape(known.shape), 0.0)
        form = self._form(s)
        regimes = Regimes.of(form, self._log_det(s), D, self.initial_scale, self.initial_step)
        potential = self._counted(self._known_scores(value, form, s), value, lengths)
        partial = torch.full((N * T,), -1).index_put((evidence.partial,), torch.arange(len(evidence.partial)))
        switching = Switching(
            regimes, potential, known, value, partial.reshape(N, T, 1),
            evidence.precision, evidence.information, lengths, value.new_ones(N, T, 1),
        )  # fmt: skip
        alone = torch.where(switching.touched[..., None], 0.0, potential)
        return replace(switching, potential=alone), evidence.constant.reshape(N, T).sum(-1)

    def fill(self, x: Tensor, s: Natural, z: Tensor) -> Tensor:
        if not torch.isnan(x).any():
            return x.clone()
        frames = self.frames(x)
        h = frames.value
        if frames.latent is not None:
            weights = torch.nn.functional.one_hot(z, len(s["log_det"])).to(h)
            h = frames.latent.sample(self.given(frames.latent, s, weights))
        exists = torch.arange(x.shape[1]) < frames.lengths[:, None]
        return torch.where(torch.isnan(x) & exists[..., None], self._observe(x, h), x)

    def sample(self, s: Natural, z: Tensor) -> Tensor:
        nothing = torch.zeros(len(z), dtype=torch.long)
        h = self._run(s, z, torch.zeros(len(z), self.lags, self.width, dtype=torch.float64), nothing)
        return self._observe(h.new_full((*z.shape, self.features), torch.nan), h)

    def extend(self, past: Tensor, s: Natural, z: Tensor, lengths: Tensor) -> Tensor:
        evidence, known, _ = self._evidence(past)
        value = evidence.value.reshape(known.shape)
        index = lengths[:, None] - self.lags + torch.arange(self.lags)
        h = self._run(s, z, value[torch.arange(len(past))[:, None], index.clamp_min(0)], lengths)
        return self._observe(h.new_full((*z.shape, self.features), torch.nan), h)

    def _run(self, s: Natural, z: Tensor, past: Tensor, lengths: Tensor) -> Float[Tensor, "N H D"]:
        """Run through the states ``z`` (N, H) behind the last frames ``past`` (N, L, D) of sequences of these lengths.

        First frames are those of two more states: the first frame of all, and the random walk.
        """
        D, K = self.width, s["log_det"].shape[0]
        form, eye = self._form(s), torch.eye(self.width, dtype=torch.float64)
        precision = -2 * form[:, :D, :D]
        regression = torch.linalg.solve(precision, 2 * form[:, :D, D:])
        walk = torch.nn.functional.pad(eye, (0, regression.shape[-1] - D))
        regression = torch.cat([regression, torch.stack([torch.zeros_like(walk), walk])])
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        root = torch.cat([root, torch.stack([self.initial_scale * eye, self.initial_step * eye])])
        age = lengths[:, None] + torch.arange(z.shape[1])
        state = torch.where(age == 0, K, torch.where(age < self.lags, K + 1, z))
        noise = (root[state] @ torch.randn(*z.shape, D, 1, dtype=form.dtype))[..., 0]
        return simulate(regression, state, noise, past)

    def embed(self, x: Tensor) -> Tensor:
        """Posture, and its change over the lags, from frames filled by a random walk."""
        seen = self.frames(x)
        frames, latent = seen.value, seen.latent
        if latent is not None:
            frames = latent.mean(self.given(latent, self.family.expected(self.prior(1))))
        change = frames - torch.nn.functional.pad(frames, (0, 0, self.lags, 0))[:, : frames.shape[1]]
        change[:, : self.lags] = 0
        return torch.cat([frames, change / change.std().clamp_min(1e-12)], -1)

    def _form(self, s: Natural) -> Float[Tensor, "K W W"]:
        """The quadratic form over ``(h_t, h_{t-1}, ..., h_{t-L}, 1)``."""
        if self.covariance == "full":
            return homogeneous(s["precision"], s["linear"], s["quadratic"])
        precision = torch.diag_embed(s["precision"][..., 0, 0])
        return homogeneous(precision, s["linear"][..., 0, :], s["quadratic"].sum(-3))

    def _log_det(self, s: Natural) -> Float[Tensor, " K"]:
        return s["log_det"] if self.covariance == "full" else s["log_det"].sum(-1)

    def _known_scores(self, value: Tensor, form: Tensor, s: Natural) -> Float[Tensor, "n K"]:
        """Log-potentials of all windows with these frames."""
        windows = self._windows(value).reshape(-1, form.shape[-1])
        return scores(windows, form) + (self._log_det(s) - self.width / 2 * LOG_2PI)

    def _counted(self, total: Tensor, value: Tensor, lengths: Tensor) -> Float[Tensor, "N T K"]:
        """Log-potentials of the frames that have all their lags; zero at others."""
        N, T = value.shape[:2]
        time = torch.arange(T, device=value.device)
        counted = (time >= self.lags) & (time < lengths[:, None])
        return torch.where(counted[..., None], total.reshape(N, T, -1), 0.0)

    def _windows(self, h: Float[Tensor, "N T D"]) -> Float[Tensor, "N T W"]:
        T = h.shape[1]
        shifted = [torch.nn.functional.pad(h, (0, 0, lag, 0))[:, :T] for lag in range(self.lags + 1)]
        return torch.cat([*shifted, h.new_ones(*h.shape[:2], 1)], -1)

    def _evidence(self, x: Tensor) -> tuple[RowEvidence, Tensor, Tensor]:
        """What the data says about the latent frames; which are known (frames past the end count as known); lengths."""
        N, T, F = x.shape
        rows = x.reshape(-1, F)
        seen = ~torch.isnan(x)
        lengths = sequence_lengths(x)
        if self.subspace is None:
            nothing = rows.new_zeros(0, F)
            partial = torch.zeros(0, dtype=torch.long)
            evidence = RowEvidence(
                torch.nan_to_num(rows), seen.reshape(-1, F), partial, nothing[..., None].expand(0, F, F), nothing,
                rows.new_zeros(N * T),
            )  # fmt: skip
        else:
            evidence = self.subspace.evidence(rows)
        past = torch.arange(T) >= lengths[:, None]
        return evidence, evidence.known.reshape(N, T, -1) | past[..., None], lengths

    def _observe(self, x: Tensor, h: Tensor) -> Tensor:
        """Draw the NaN entries of ``x`` given the latent frames."""
        if self.subspace is None:
            return torch.where(torch.isnan(x), h, x)
        return self.subspace.fill(x.reshape(-1, self.features), h.reshape(-1, self.width)).reshape(x.shape)

    def log_frames(self, x: Tensor) -> Float[Tensor, "N T"]:
        evidence, known, lengths = self._evidence(x)
        first = self._each_first_frame(evidence.value.reshape(known.shape), lengths)
        return evidence.constant.reshape(x.shape[:2]) + torch.nn.functional.pad(first, (0, x.shape[1] - first.shape[1]))

    def _each_first_frame(self, h: Tensor, lengths: Tensor) -> Float[Tensor, "N L"]:
        """Log-density of each of the first frames at ``h``."""
        first = h[:, : self.lags]
        exists = torch.arange(first.shape[1]) < lengths[:, None]
        scale = torch.full((first.shape[1], 1), self.initial_step, dtype=h.dtype)
        scale[:1] = self.initial_scale
        z = torch.diff(first, dim=1, prepend=torch.zeros_like(first[:, :1])) / scale
        each = -0.5 * (z**2 + LOG_2PI) - scale.log()
        return each.sum(-1) * exists

    def _first_precision(self) -> Float[Tensor, "S LD LD"]:
        """Precision of the first frames of a sequence of 0, 1, ..., L frames, in one block."""
        L = self.lags
        steps = torch.eye(L, dtype=torch.float64) - torch.diag(torch.ones(L - 1, dtype=torch.float64), -1)
        weight = torch.full((L,), self.initial_step**-2, dtype=torch.float64)
        weight[0] = self.initial_scale**-2
        exists = torch.tril(torch.ones(L + 1, L, dtype=torch.float64), -1)
        time = steps.mT @ torch.diag_embed(exists * weight) @ steps
        return torch.kron(time, torch.eye(self.width, dtype=torch.float64)[None])

    def _said(self, gaps: Gaps, evidence: RowEvidence, T: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Precision and information on superframes: partly observed frames, and the prior of the first frames."""
        N, M = gaps.kept.shape
        L, D = self.lags, self.width
        slot = gaps.slots()
        matrix, vector = evidence.value.new_zeros(N, M, L, D, L, D), evidence.value.new_zeros(N, M, L, D)
        n, t = evidence.partial // T, evidence.partial % T
        where = slot[n, t // L]
        keep = where >= 0
        matrix[n[keep], where[keep], t[keep] % L, :, t[keep] % L, :] = evidence.precision[keep]
        vector[n[keep], where[keep], t[keep] % L] = evidence.information[keep]
        first = slot[:, 0] >= 0
        matrix = matrix.reshape(N, M, L * D, L * D)
        matrix[first, slot[first, 0]] += self._first_precision()[lengths[first].clamp_max(L)]
        return matrix, vector.reshape(N, M, L * D)
