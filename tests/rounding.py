"""How far rounding leads a computation in float32 from the exact result: tolerances that hold on every processor.

A sum of n terms is rounded n times, each time by at most half a unit in the last place of the partial sum and in no
particular direction, so its error is about √n·ε times the sum of the terms' sizes (Higham 2002, Accuracy and Stability
of Numerical Algorithms, section 2.8). Which order of the terms, which instructions and which number of threads a
processor takes changes the error within that bound. References are computed in float64.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

EPSILON = torch.finfo(torch.float32).eps


def rounding_error(terms: float, size: float | Tensor) -> float:
    """The error of a float32 result.

    terms: how many terms each number sums, over all operations in a row.
    size: the largest sum of the absolute values of these terms.
    """
    return math.sqrt(terms) * EPSILON * float(size)


def terms_of(network: nn.Module) -> int:
    """The terms on the way through a network: the inputs of each number of each convolution and linear layer."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return sum(layer.weight[0].numel() for layer in layers)


def in_float64(network: nn.Module) -> nn.Module:
    """A copy of a network that computes in float64."""
    return copy.deepcopy(network).double()


def assert_rounded(found: Tensor, reference: Tensor, *, terms: float, size: float | Tensor | None = None) -> None:
    """Check a float32 result against a reference in float64.

    terms, size: as in `rounding_error`; size is the largest reference, or 1 if that is more, if left out.
    """
    largest = reference.abs().max().clamp_min(1) if size is None else size
    torch.testing.assert_close(found.double(), reference.double(), rtol=0, atol=rounding_error(terms, largest))
