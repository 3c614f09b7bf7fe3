"""The checker of annotations sees what it is for."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from shape_checks import check
from torch import Tensor

from ppgen.messages import mixture


@check
def scaled(x: Float[Tensor, "N D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "N D"]:
    return x * scale if scale.sum() else x.T


@check
def twice(x: Float[Tensor, "D N"]) -> Float[Tensor, "D N"]:
    return scaled(x.T, x[:, 0]).T


@check
def rows(x: Float[Tensor, "N D"]) -> Iterator[Float[Tensor, " D"]]:
    yield from x


@check
@dataclasses.dataclass
class Box:
    count: int
    width: "float | Tensor" = 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: scaled(torch.ones(3, 2), torch.ones(3)),  # an axis of two lengths among the arguments
        lambda: scaled(torch.ones(3, 2), torch.zeros(2)),  # another shape comes back
        lambda: scaled(torch.ones(3), torch.ones(3)),  # too few axes
        lambda: scaled(torch.ones(3, 2).long(), torch.ones(2)),  # another type of number
        lambda: rows(torch.ones(3)),
        lambda: Box("two"),
        lambda: Box(2, "wide"),
        lambda: mixture(torch.ones(3).long(), None),  # a module of the package is checked
    ],
)
def test_what_an_annotation_forbids_is_an_error(call):
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        call()


def test_each_call_has_lengths_of_its_own():
    assert scaled(torch.ones(3, 2), torch.ones(2)).shape == (3, 2)
    assert scaled(torch.ones(2, 3), torch.ones(3)).shape == (2, 3)
    assert twice(torch.ones(4, 5)).shape == (4, 5)
    assert [len(row) for one in (torch.ones(1, 2), torch.ones(2, 3)) for row in rows(one)] == [2, 3, 3]


def test_a_whole_number_is_a_good_float():
    assert Box(2, 1).width == 1
