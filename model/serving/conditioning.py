"""What a network is conditioned on: the request of one image, and the tensors of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConditioningRequest:
    """What one image is to show. Fields that a model does not take stay None.

    Attributes:
        label: The class index; None asks for an unconditional image.
        prompt: What the image shows, in words.
        negative_prompt: What guidance leads away from.
        loras: Weights of low-rank adapters, by name.
        width, height: Of the image in pixels; None stands for the model's own size.
        clip_skip: How many of the text encoder's last layers are left out for the prompt.
        emphasis: Whether brackets in the prompts are emphasis (`model.text.prompt`).
        guidance_scale: For a network that takes it as an input.
        is_negative: Whether this is the request that guidance leads away from.
        has_image: Whether an input image, next to the text, is part of the condition.
    """

    label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    clip_skip: int = 0
    emphasis: bool = False
    guidance_scale: float = 1.0
    is_negative: bool = False
    has_image: bool = False

    def compared(self) -> list[ConditioningRequest]:
        """The requests that guidance compares this one with: one with the input image alone, if it has one, and the
        unconditional one."""
        without_text = self.unconditional()
        return [without_text, replace(without_text, has_image=False)] if self.has_image else [without_text]

    def unconditional(self) -> ConditioningRequest:
        """The request that guidance compares this one with: without a label, and with the negative prompt.

        As in diffusers, the negative prompt is encoded by all layers.
        """
        return replace(
            self, label=None, prompt=self.negative_prompt, negative_prompt=None, clip_skip=0, is_negative=True
        )


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a batch of images, as `ServedModel.denoise` takes it.

    Attributes:
        tensors: By name, each (B, …) with the same leading batch dimension: for a class-conditional network
            `label` (B,) int64; for a text-conditioned one hidden states, a pooled vector and size ids.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        assert len({len(tensor) for tensor in self.tensors.values()}) == 1, "one leading batch dimension for all"

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each tensor without its batch dimension."""
        return tuple(tuple(tensor.shape[1:]) for tensor in self.tensors.values())

    @classmethod
    def stack(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join the batches of several conditionings of one model into one batch, in order."""
        return cls({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})

    def select(self, index: Tensor | slice) -> Conditioning:
        """The conditioning of some images of the batch."""
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> Conditioning:
        """The same on `device`."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})
