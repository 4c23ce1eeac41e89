"""Keys and values of a text for all attentions of a U-Net, computed once for each text.

They do not depend on the latents or on t, so all steps of an image use the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoised.model.backends.native.transformers.transformer_kernels import padded_count


@dataclass(frozen=True)
class TextColumns:
    """Where the keys and the values of one attention are in the row of a text.

    Attributes:
        start: Widths of all attentions before this one.
        width: Channels of the keys, and of the values.
        total: Widths of all attentions.
    """

    start: int
    width: int
    total: int

    def split(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """The keys (B, width·padded) and the values (B, width·M) in the rows (B, …) of `TextProjection`."""
        both = text.shape[1] // self.total  # the number of values and the padded number of keys
        # both = M + padded(M), and M is at most padded(M): half of it, rounded up to whole vectors, is padded(M) again.
        padded = padded_count((both + 1) // 2)
        start = self.start * both
        middle, stop = start + self.width * padded, start + self.width * both
        return text[:, start:middle], text[:, middle:stop]


class TextProjection:
    """The keys and values of all attentions of a network for a text, in one row."""

    def __init__(self, project: nn.Module, widths: Sequence[int]) -> None:
        """project: a 1×1 convolution, hidden states (B, C, 1, M) → (B, 2·sum(widths), 1, M), for each attention the
        keys and then the values; widths: channels of each attention."""
        self._project = project
        self._widths = widths

    def __call__(self, context: Tensor) -> Tensor:
        """Hidden states (B, M, C) → (B, sum(widths)·(padded M + M))."""
        channels = self._project(context.transpose(1, 2)[:, :, None])[:, :, 0]  # (B, 2·sum(widths), M)
        parts = channels.split([width for each in self._widths for width in (each, each)], dim=1)
        padding = padded_count(context.shape[1]) - context.shape[1]
        rows = []
        for keys, values in zip(parts[::2], parts[1::2], strict=True):
            # q·kᵀ reads a vector of keys for one channel; softmax(…)·v reads a vector of channels for one token.
            rows.append(F.pad(keys, (0, padding)).flatten(1))  # (heads, D, padded): the channels are in this order
            rows.append(values.transpose(1, 2).flatten(1))  # (M, heads, D)
        return torch.cat(rows, dim=1)
