"""A DataTree of a fit, entry by entry: for checks that compare every observation with its own predictive draws."""

import numpy as np
import xarray as xr

__all__ = ["by_entry"]


def by_entry(tree: xr.DataTree, name: str = "x") -> xr.DataTree:
    """Line the observed entries up along one dim ``entry``, in every group that holds data; the rest stays as it is.

    ``arviz_stats.loo_pit``, ``plot_loo_pit`` and ``plot_ppc_pit`` need one log-likelihood per entry and no NaN. Each
    entry gets that of its row, whose entries are not independent given the parameters: so each is compared with draws
    from which its whole row (of a time series, its sequence) is left out.

    Parameters
    ----------
    tree : of `Fit.to_arviz`, with the data.
    name : of the data.
    """
    groups = {key: node.to_dataset() for key, node in tree.children.items()}
    observed = groups["observed_data"][name]
    dims, row = list(observed.dims), observed.dims[0]
    flat = observed.stack(entry=dims)
    seen = np.flatnonzero(flat.notnull().values)
    rows = xr.DataArray(np.repeat(np.arange(observed.sizes[row]), observed[0].size)[seen], dims="entry")
    likelihood = groups["log_likelihood"][name]
    if row in observed.coords:  # rows without observations are not there
        likelihood = likelihood.reindex({row: observed[row]})
    entries: dict[str, xr.DataArray] = {
        "observed_data": flat.isel(entry=seen),
        "log_likelihood": likelihood.isel({row: rows}),
        **{
            group: groups[group][name].stack(entry=dims).isel(entry=seen)
            for group in ("posterior_predictive", "prior_predictive")
            if group in groups
        },
    }
    for group, values in entries.items():
        plain = values.drop_vars(["entry", *dims], errors="ignore").assign_coords(entry=np.arange(len(seen)))
        places = {dim: ("entry", place) for dim, place in _places(observed, seen).items()}
        groups[group] = plain.assign_coords(places).to_dataset(name=name).assign_attrs(groups[group].attrs)
    return xr.DataTree.from_dict(groups)


def _places(observed: xr.DataArray, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Where each entry was: its label along every axis of the data."""
    index = np.unravel_index(seen, observed.shape)
    return {str(dim): observed[dim].values[place] for dim, place in zip(observed.dims, index, strict=True)}
