r"""Probabilistic canonical correlations: views of the same rows that share a few latent numbers.

.. math::
    (C_v, R_v) \sim \text{matrix-normal inverse-Wishart}, \quad h_n \sim \mathcal N(0, I), \quad
    x_n^{(v)} \sim \mathcal N\big(C_v\,[h_n^{(v)}; 1], R_v\big)

where :math:`h_n^{(v)}` are the ``shared`` numbers and ``private`` ones that view v has alone. With one view it is
factor analysis. With ``sparse=True`` every view sees every latent number, and how strongly is learnt for each,
:math:`C_{v,\cdot l} \sim \mathcal N(0, (\alpha_{vl} \Lambda_v)^{-1})`: a latent number that a view does not need is
switched off in it, so that the data say what is shared by which views.

The latent numbers are summed out exactly, so the guide covers the parameters only. NaN in ``x`` is missing at random,
single entries and whole views: it is integrated out. Scale your features to about unit variance; the priors assume
it.

References: Bach & Jordan (2005); Klami, Virtanen & Kaski (2013) for ``sparse=True``; Rubin & Thayer (1982) for one
view.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from ppgen.collapsed.factor_rows import FactorRows, View
from ppgen.data.parts import Inputs
from ppgen.data.views import VIEW
from ppgen.diagnostics.rotation import exchanges, turns
from ppgen.errors import DataError
from ppgen.families.family import Factor
from ppgen.families.regression import Regression
from ppgen.model import Conjugate

__all__ = ["CCA"]

_log = logging.getLogger(__name__)

RELEVANCE = 0.5, 5e-4  # shape and rate of the gamma prior of a relevance: from one to thousands
SWEEPS = 200  # steps of the rotation that a sparse start begins from
SINGLE = "feature"  # the axis of the features of a model of one view


@final
class CCA(Conjugate):
    """``CCA({"brain": 20, "behaviour": 5}, shared=2)``: data ``x`` of shape (N, D), the views side by side.

    Data are an array, a table, or a dict of tables {view: rows and columns}.

    Parameters
    ----------
    views : {view: its number of columns, or their names}, in the order of the columns; a number alone is one view.
    shared : number of latent numbers that all views see.
    private : number of latent numbers that a view has for itself, of all views or {view: number}.
    sparse : learn how strongly each view sees each latent number.
    covariance : noise of a view, ``"diagonal"``, ``"spherical"`` (of one view, probabilistic principal components), or
        ``"full"`` as of Bach & Jordan, which takes the place of private numbers.
    noise : prior guess of the variance of the noise of a feature, in squared units of ``x``.
    strength : prior precision of the coefficients, in units of the precision of the noise.
    """

    data_dims = ("row", "feature")

    def __init__(
        self,
        views: int | Mapping[str, int | Sequence[str]],
        shared: int,
        *,
        private: int | Mapping[str, int] = 0,
        sparse: bool = False,
        covariance: str = "diagonal",
        noise: float = 0.5,
        strength: float = 0.1,
    ) -> None:
        super().__init__()
        given = {SINGLE: views} if isinstance(views, int) else dict(views)
        self.columns = {
            str(view): columns if isinstance(columns, int) else list(columns) for view, columns in given.items()
        }
        self.widths = {view: c if isinstance(c, int) else len(c) for view, c in self.columns.items()}
        self.shared, self.sparse, self.covariance = shared, sparse, covariance
        each = dict.fromkeys(self.widths, private) if isinstance(private, int) else dict(private)
        self.private = {view: each.get(view, 0) for view in self.widths}
        self._check_numbers(set(each) - set(self.widths))
        for name, value in (("noise", noise), ("strength", strength)):
            if not 0 < value < float("inf"):
                raise DataError(f"CCA: {name} must be positive, got {value}")
        self.noise, self.strength = float(noise), float(strength)
        self.views = self._views()
        if sparse:
            self.log_relevance = nn.Parameter(torch.zeros(len(self.widths), self.latent, dtype=torch.float64))

    def observations(self, x: object) -> xr.DataArray:
        """The views side by side in the order of the model, and the columns of each, where both have names.

        Raises
        ------
        DataError : other views than those of the model, views of other widths, or columns of other names.
        """
        found = super().observations(x)
        feature = found.dims[1]
        labels = found[feature].values.tolist() if feature in found.coords else []
        if VIEW in found.coords:
            came = found[VIEW].values.tolist()
            self._check_views({view: came.count(view) for view in dict.fromkeys(came)})
            parts = [self._places(view, came, labels) for view in self.widths]
            return found.isel({feature: [place for part in parts for place in part]})
        names = [name for own in self.columns.values() if not isinstance(own, int) for name in own]
        if len(names) == self.features and any(isinstance(label, str) for label in labels):
            return found.isel({feature: self._matched("columns", names, labels)})
        return found

    def _check_views(self, came: Mapping[str, int]) -> None:
        if came != self.widths:
            raise DataError(
                f"CCA: x must have the views {self.widths} (name and width), got {came}; rename or select them"
            )

    def _places(self, view: str, came: Sequence[str], labels: Sequence[Any]) -> list[int]:
        """Places of the columns of a view, in the order of their names in the model if both have some."""
        places, own = [i for i, other in enumerate(came) if other == view], self.columns[view]
        if isinstance(own, int):
            return places
        bare = [str(labels[i]).removeprefix(f"{view}.") for i in places]
        if bare == [str(number) for number in range(len(places))]:
            return places  # counted, not named
        return [places[i] for i in self._matched(f"columns of {view}", own, bare)]

    def _matched(self, what: str, names: Sequence[Any], labels: Sequence[Any]) -> list[int]:
        """Where each of the model's names is among labels of the data, with or without the name of its view."""
        place = {str(label): number for number, label in enumerate(labels)}
        views = [view for view, own in self.columns.items() if not isinstance(own, int) for _ in own]
        full = [f"{view}.{name}" for view, name in zip(views, names, strict=False)]
        for wanted in (list(map(str, names)), full):
            if set(wanted) == set(place):
                return [place[name] for name in wanted]
        raise DataError(
            f"CCA: {what} must be those of the model, {list(names)[:6]}, got {list(labels)[:6]}; rename or select them"
        )

    @property
    def config(self) -> dict[str, Any]:
        views = self.columns[SINGLE] if list(self.columns) == [SINGLE] else self.columns
        names = ("shared", "private", "sparse", "covariance", "noise", "strength")
        return {"views": views} | {name: getattr(self, name) for name in names}

    @property
    def latent(self) -> int:
        """Number of all latent numbers L."""
        return self.shared + sum(self.private.values())

    @property
    def features(self) -> int:
        """Number of all features D."""
        return sum(self.widths.values())

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {"relevance": ("view", "latent")} if self.sparse else {}
        for name, (emission, _) in self.views.items():
            found |= emission.dims(self._axis(name, "feature"), self._axis(name, "regressor"))
        return found

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        own = [f"{view}{i}" for view, number in self.private.items() for i in range(number)]
        latent = [*(f"shared{i}" for i in range(self.shared)), *own]
        found: dict[str, Sequence[Any]] = {"latent": latent}
        if self.sparse:
            found["view"] = list(self.widths)
        for view, (_, sees) in self.views.items():
            found[self._axis(view, "regressor")] = [*(latent[i] for i in sees.argmax(-1).tolist()), "one"]
            columns = self.columns[view]
            if not isinstance(columns, int):
                found[self._axis(view, "feature")] = columns
        return found

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        relevance = points.get("relevance", self.log_relevance.exp()) if self.sparse else [None] * len(self.views)
        return {
            _site(view): emission.prior(None if own is None else torch.cat([own, own.new_tensor([self.strength])]))
            for (view, (emission, _)), own in zip(self.views.items(), relevance, strict=True)
        }

    def model(self, x: Float[Tensor, "N D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then rows with their latent numbers summed out."""
        if u is not None:
            raise DataError("CCA: takes no inputs u, got some; give them as a view")
        s = self.statistics(**self._relevance())
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            views = [View(emission, sees.to(x.device)) for emission, sees in self.views.values()]
            pyro.sample("x", FactorRows(views, [s[_site(view)] for view in self.views], len(x)), obs=x)

    def _relevance(self) -> dict[str, Tensor]:
        if not self.sparse:
            return {}
        shape, rate = (torch.full((len(self.views), self.latent), value, dtype=torch.float64) for value in RELEVANCE)
        return {"relevance": pyro.sample("relevance", dist.Gamma(shape, rate).to_event(2))}

    @property
    def points(self) -> Mapping[str, Tensor]:
        return {"relevance": self.log_relevance.exp()} if self.sparse else {}

    def log_hyperprior(self) -> Tensor:
        """Log prior density of the relevances, of their logarithms."""
        if not self.sparse:
            return torch.zeros((), dtype=torch.float64)
        shape, rate = RELEVANCE
        return (shape * self.log_relevance - rate * self.log_relevance.exp()).sum()

    def remarks(self, theta: Mapping[str, Tensor]) -> list[str]:
        """Notes of more latent numbers than features, and of latent numbers that no view sees."""
        if self.latent >= self.features:
            return [f"CCA: there are {self.latent} latent numbers for {self.features} features; fewer say the same"]
        return []

    def turned(self, theta: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Draws whose latent numbers are turned alike: those that are shared, and those of each view.

        With ``sparse=True`` they may only be exchanged and change their signs.
        """
        shape = next(iter(theta.values())).shape[:2]
        loadings = {view: self._loading(theta, view).flatten(0, 1) for view in self.views}
        whole = torch.zeros(shape.numel(), self.latent, self.latent, dtype=torch.float64)
        for group in self._groups():
            seen = torch.cat([loadings[view][..., group] for view in self.views], -2)
            whole[:, group[:, None], group] = exchanges(seen) if self.sparse else turns(seen)
        moved = dict(theta)
        for emission, sees in self.views.values():
            site, L = emission.family.coefficients, len(sees)
            own = sees @ whole.unflatten(0, shape) @ sees.mT
            C = theta[site]
            rows = C.flatten(2, -2) if emission.full else C[..., 0, :]
            rows = torch.cat([rows[..., :L] @ own.mT, rows[..., L:]], -1)
            moved[site] = rows.reshape(C.shape)
        if self.sparse:
            moved["relevance"] = theta["relevance"] @ whole.abs().unflatten(0, shape).mT
        return moved

    def canonical_correlations(
        self, theta: Mapping[str, Tensor], first: str, second: str
    ) -> Float[Tensor, "*S shared"]:
        """Canonical correlations of two views, largest first, that parameters {site: (*S, ...)} stand for."""
        roots, links = [], []
        for view in (first, second):
            if view not in self.views:
                raise DataError(f"CCA: views are {list(self.views)}, got {view!r}")
            noise = self._noise(theta, view)
            C = self._loading(theta, view)
            roots.append(torch.linalg.cholesky(C @ C.mT + noise))
            links.append(torch.linalg.solve_triangular(roots[-1], C, upper=False))
        return torch.linalg.svdvals(links[0] @ links[1].mT)[..., : self.shared]

    def explained(self, theta: Mapping[str, Tensor]) -> Float[Tensor, "*S view latent"]:
        """Share of the variance of each view's features, summed, that each latent number accounts for."""
        found = []
        for view in self.views:
            C = self._loading(theta, view)
            total = (C @ C.mT + self._noise(theta, view)).diagonal(dim1=-2, dim2=-1).sum(-1)
            found.append(C.square().sum(-2) / total[..., None])
        return torch.stack(found, -2)

    @property
    def starts(self) -> tuple[str, ...]:
        return ("svd", "random")

    def guess(
        self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str
    ) -> list[dict[str, Float[Tensor, "N 1 L"]]]:
        """Latent numbers ``h``: shared ones from singular vectors of the views side by side, each view whitened as far
        as noise allows, private ones from what is left of a view (``"svd"``); or ``"random"`` ones.
        """
        rows = torch.cat(list(batches))
        if start == "random":
            h = torch.randn(len(rows), self.latent, dtype=torch.float64)
        elif start == "svd":
            h = self._scores(_filled(rows))
        else:
            raise DataError(f'CCA: a start is "svd" or "random", got {start!r}')
        self._warn_of(rows)
        return [{"h": part[:, None]} for part in h.split([len(x) for x in batches])]

    def check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[-1] != self.features:
            views = ", ".join(f"{view} {width}" for view, width in self.widths.items())
            raise DataError(f"CCA: x must have shape (N, D={self.features}), of {views}, got {tuple(x.shape)}")
        if torch.isinf(x).any():
            where = tuple(torch.isinf(x).nonzero()[0].tolist())
            raise DataError(f"CCA: x must be finite or NaN, got {x[where].item()} at {where}")

    def _check_numbers(self, unknown: set[str]) -> None:
        if unknown:
            raise DataError(f"CCA: private must name views of {list(self.widths)}, got {sorted(unknown)}")
        if not self.widths or min(self.widths.values()) < 1:
            raise DataError(f"CCA: views must be {{name: number of columns, at least 1}}, got {self.columns}")
        for name, value in {"shared": self.shared, **{f"private of {v}": n for v, n in self.private.items()}}.items():
            if not isinstance(value, int) or value < 0:
                raise DataError(f"CCA: {name} must be a whole number of at least 0, got {value!r}")
        if not self.latent:
            raise DataError("CCA: there must be a latent number, got shared=0 and no private ones")
        if self.sparse and any(self.private.values()):
            raise DataError("CCA: sparse=True finds private numbers by itself; give more shared ones and private=0")
        if odd := [view for view in self.widths if not view.isidentifier() or view in ("row", "latent", "view")]:
            raise DataError(f"CCA: views must have names of letters, digits and _, not row, latent or view, got {odd}")

    def _views(self) -> dict[str, View]:
        eye, begin, found = torch.eye(self.latent, dtype=torch.float64), self.shared, {}
        for view, width in self.widths.items():
            own = eye[begin : begin + self.private[view]]
            begin += len(own)
            sees = torch.cat([eye[: self.shared], own])
            emission = Regression(
                width, len(sees) + 1, _site(view), self.covariance, noise=self.noise, strength=self.strength
            )
            found[view] = View(emission, sees)
        return found

    def _axis(self, view: str, kind: str) -> str:
        if list(self.widths) == [SINGLE] or (kind == "regressor" and not any(self.private.values())):
            return kind
        return f"{view}_{kind}"

    def _groups(self) -> list[Tensor]:
        """Latent numbers that may be turned into each other."""
        sizes = [self.shared, *self.private.values()]
        return [group for group in torch.arange(self.latent).split(sizes) if len(group)]

    def _loading(self, theta: Mapping[str, Tensor], view: str) -> Float[Tensor, "*S D L"]:
        """Coefficients of all latent numbers, zero where the view does not see one."""
        emission, sees = self.views[view]
        C = theta[emission.family.coefficients]
        return (C if emission.full else C[..., 0, :])[..., :-1] @ sees

    def _noise(self, theta: Mapping[str, Tensor], view: str) -> Float[Tensor, "*S D D"]:
        emission = self.views[view].emission
        if emission.spherical:
            variance = 1 / theta[emission.family.sites[0]]
            return torch.diag_embed(variance[..., None].expand(*variance.shape, emission.outputs))
        root = theta[emission.family.sites[0]]
        return torch.linalg.inv(root @ root.mT) if emission.full else torch.diag_embed(root[..., 0, 0] ** -2)

    def _scores(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N L"]:
        parts = dict(zip(self.widths, rows.split(list(self.widths.values()), -1), strict=True))
        N, left = len(rows), []
        for part in parts.values():
            U, size, _ = torch.linalg.svd(part, full_matrices=False)
            whitened = size / (size.square() + N * self.noise).sqrt()
            left.append(U * (size if self.sparse or len(parts) == 1 else whitened))
        shared = _leading(torch.cat(left, -1), self.shared)
        if self.sparse:
            return shared @ _sparsely([shared.mT @ part / N for part in parts.values()], N)
        own = [_leading(part - shared @ (shared.mT @ part) / N, self.private[view]) for view, part in parts.items()]
        return torch.cat([shared, *own], -1)

    def _warn_of(self, rows: Tensor) -> None:
        """Say which views have no row in common: nothing tells what they share."""
        seen = {
            v: ~p.isnan().all(-1) for v, p in zip(self.widths, rows.split(list(self.widths.values()), -1), strict=True)
        }
        names = list(seen)
        for i, one in enumerate(names):
            apart = [other for other in names[i + 1 :] if not (seen[one] & seen[other]).any()]
            for other in apart:
                _log.warning("CCA: no row has both %s and %s, so the data do not say what they share", one, other)


def _site(view: str) -> str:
    return "loading" if view == SINGLE else f"loading_{view}"


def _filled(rows: Tensor) -> Tensor:
    """Centred rows with zeros for what is missing, for the start only."""
    return torch.nan_to_num(rows - torch.nan_to_num(rows.nanmean(0)))


def _leading(matrix: Float[Tensor, "N D"], number: int) -> Float[Tensor, "N number"]:
    """Left singular vectors of the largest singular values, of variance one; zeros where there are no more."""
    U = torch.linalg.svd(matrix, full_matrices=False)[0][:, :number]
    return torch.nn.functional.pad(U * len(matrix) ** 0.5, (0, number - U.shape[-1]))


def _sparsely(loadings: Sequence[Float[Tensor, "L D_v"]], rows: int) -> Float[Tensor, "L L"]:
    """Orthogonal Q that leaves each view few latent numbers.

    First it raises the sum of the squares of what view v has of l, which is convex in Q, so that the orthogonal matrix
    nearest to its gradient is never worse; from there it lowers the sum of their logarithms, D_v log(what v has of l),
    which is the cost that the learnt relevances leave.
    """
    squares, width = torch.stack([C @ C.mT for C in loadings]), torch.tensor([float(C.shape[-1]) for C in loadings])
    Q = torch.eye(len(loadings[0]), dtype=torch.float64)
    for _ in range(SWEEPS):
        pulls = squares @ Q
        U, _, V = torch.linalg.svd((pulls * (Q * pulls).sum(-2, keepdim=True)).sum(0))
        Q = U @ V
    turn = torch.zeros_like(Q, requires_grad=True)
    optimizer = torch.optim.LBFGS([turn], max_iter=SWEEPS, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        own = Q @ torch.linalg.matrix_exp(turn - turn.mT)
        value = (width[:, None] * ((own * (squares @ own)).sum(-2) + width[:, None] / rows).log()).sum()
        value.backward()
        return value

    optimizer.step(cost)
    return (Q @ torch.linalg.matrix_exp(turn - turn.mT)).detach()
