"""The type of a shape, as methods of torch's distributions take it."""

import torch

__all__ = ["Shape"]

Shape = torch.Size | list[int] | tuple[int, ...]
