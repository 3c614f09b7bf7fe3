"""A DataTree of a fit, entry by entry: for checks that compare every observation with its own predictive draws."""

import numpy as np
import xarray as xr

from ppgen.errors import DataError

__all__ = ["by_entry"]


def by_entry(tree: xr.DataTree, name: str = "x", *, loo_pit: bool = False) -> xr.DataTree:
    """Line the observed entries up along one dim ``entry``, in every group that holds data; the rest stays as it is.

    The log-likelihood is left out where a row has several observed entries: it is that of the whole row, and summed
    over its entries it would count as often as there are. Leave-one-out and comparisons take the tree as it was.

    Parameters
    ----------
    tree : result of `Fit.to_arviz`, with the data.
    name : name of the data.
    loo_pit : give each entry the log-likelihood of its row, for ``arviz_stats.loo_pit`` and ``plot_loo_pit`` alone,
        which need one per entry: each is then compared with draws from which its whole row (of a time series, its
        sequence) is left out.

    Raises
    ------
    DataError : ``loo_pit`` of a single row: without it nothing is left to compare with.
    """
    groups = {key: node.to_dataset() for key, node in tree.children.items()}
    observed = groups["observed_data"][name]
    dims, row = list(observed.dims), observed.dims[0]
    flat = observed.stack(entry=dims)
    seen = np.flatnonzero(flat.notnull().values)
    rows = xr.DataArray(np.repeat(np.arange(observed.sizes[row]), observed[0].size)[seen], dims="entry")
    if loo_pit and len(np.unique(rows)) < 2:
        raise DataError(
            f"by_entry: LOO-PIT leaves one {row} out at a time, so there must be several with observations, got "
            f"{len(np.unique(rows))}; look at each step given those before it, fit.log_likelihood(x, per='step')"
        )
    alone = len(np.unique(rows)) == len(rows)
    likelihood = groups["log_likelihood"][name]
    if row in observed.coords:  # rows without observations are not there
        likelihood = likelihood.reindex({row: observed[row]})
    entries: dict[str, xr.DataArray] = {
        "observed_data": flat.isel(entry=seen),
        **({"log_likelihood": likelihood.isel({row: rows})} if loo_pit or alone else {}),
        **{
            group: groups[group][name].stack(entry=dims).isel(entry=seen)
            for group in ("posterior_predictive", "prior_predictive")
            if group in groups
        },
    }
    if "log_likelihood" not in entries:
        del groups["log_likelihood"]
    for group, values in entries.items():
        plain = values.drop_vars(["entry", *dims], errors="ignore").assign_coords(entry=np.arange(len(seen)))
        places = {dim: ("entry", place) for dim, place in _places(observed, seen).items()}
        groups[group] = plain.assign_coords(places).to_dataset(name=name).assign_attrs(groups[group].attrs)
    return xr.DataTree.from_dict(groups)


def _places(observed: xr.DataArray, seen: np.ndarray) -> dict[str, np.ndarray]:
    """The position of each entry: its label along every axis of the data."""
    index = np.unravel_index(seen, observed.shape)
    return {str(dim): observed[dim].values[place] for dim, place in zip(observed.dims, index, strict=True)}
