"""Which entry to measure next: expected information of each missing entry about the others, with labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from ppgen.arguments import require_at_least
from ppgen.collapsed.estimated import estimates
from ppgen.errors import DataError
from ppgen.predictions import predictive
from ppgen.predictions.information import looks, terms
from ppgen.results import answers
from ppgen.results.function_rows import as_asked
from ppgen.results.reading import check_hiding, read

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["expected_information"]

LARGEST = 2**30  # bytes of the copies of the data that one draw looks at


def expected_information(
    fit: "Fit", x: object, candidates: Sequence[object] | None, about: Sequence[object] | None, draws: int, *,
    u: object, random_seed: int | None, progressbar: bool,
) -> xr.Dataset:  # fmt: skip
    """See `Fit.expected_information`."""
    check_hiding(fit, "expected_information")
    require_at_least("expected_information: draws", draws, 2)
    observations, data, inputs = read(fit, x, u)
    hidden = torch.isnan(data) & predictive.exists(fit.model, data)
    asked = hidden & _columns(observations, candidates, "candidates")
    targets = hidden & _columns(observations, about, "about")
    if not asked.any():
        raise DataError(
            "expected_information: x must lack an entry that could be measured, got none among the candidates; leave "
            "NaN where nothing was observed"
        )
    parts = looks(asked)
    copies = (3 * len(parts) + 1) * data.numel() * 8
    if copies > LARGEST:
        raise DataError(
            f"expected_information: copies of the data, three for each of the {len(parts)} candidates that a row has "
            f"at most, must fit in {LARGEST / 2**30:.0f} GB, got {copies / 2**30:.1f} GB; name fewer candidates, or "
            "ask about fewer rows"
        )

    def one(theta: predictive.Theta) -> Tensor:
        return terms(fit.model, theta, data, parts, targets, inputs)

    with estimates() as note:
        found = answers.at_draws(
            fit, "expected_information", one, (data, inputs), draws, random_seed, progressbar=progressbar
        )
    values = {"information": found.mean(0), "mc_error": found.std(0) / draws**0.5}
    dims = tuple(map(str, observations.dims))
    placed = {
        name: xr.DataArray(_placed(value, parts), observations.coords, dims, attrs={"units": "nats"})
        for name, value in values.items()
    }
    return as_asked(fit, x, xr.Dataset(placed, attrs={"draws": draws, **note.attrs}))


def _columns(observations: xr.DataArray, labels: Sequence[object] | None, who: str) -> Bool[Tensor, "*shape"]:
    """Entries whose last axis has one of these labels; all of them for None."""
    chosen = torch.ones(observations.shape, dtype=torch.bool)
    if labels is None:
        return chosen
    dim = observations.dims[-1]
    known = observations[dim].values.tolist()
    wanted = [labels] if isinstance(labels, str) else list(labels)
    if unknown := [label for label in wanted if label not in known]:
        raise DataError(f"expected_information: {who} must be labels of {dim!r}, among {known}, got {unknown}")
    return chosen & torch.from_numpy(np.isin(np.arange(len(known)), [known.index(label) for label in wanted]))


def _placed(value: Tensor, parts: list[Tensor]) -> np.ndarray:
    """The value of each candidate in its place, NaN elsewhere."""
    found = torch.full(parts[0].shape, torch.nan, dtype=torch.float64)
    for row, part in zip(value, parts, strict=True):
        found = torch.where(part, row.reshape(-1, *[1] * (part.ndim - 1)), found)
    return found.numpy()
