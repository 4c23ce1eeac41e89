"""What a network is conditioned on: the request of one image, and the tensors and ControlNets of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from denoised.model.backends.control_backend import ControlBackend, RowControl


@dataclass(frozen=True)
class ControlRequest:
    """A ControlNet of a request.

    Attributes:
        name: Of the network.
        picture: Name of its control picture among those of the job.
        scale: Of its residuals.
        start, end: Between which fractions of the evaluations it applies.
        guess_mode: Whether it applies to the row with the text alone, with residuals scaled by resolution.
    """

    name: str
    picture: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False


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
        controls: ControlNets, in the order in which their residuals are added.
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
    controls: tuple[ControlRequest, ...] = ()

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


@dataclass(frozen=True, eq=False)
class ControlConditioning:
    """A ControlNet that one row of a batch is conditioned on.

    Attributes:
        request: What was asked for.
        network: It.
        hint: The features of its control picture (`ControlNet.hint`).
    """

    request: ControlRequest
    network: ControlBackend
    hint: Tensor

    def applies(self, row: int, rows: int) -> bool:
        """Whether it applies to a row of a plan of so many rows, as `control_guidance_start` and `_end` of diffusers'
        pipelines say."""
        return row / rows >= self.request.start and (row + 1) / rows <= self.request.end

    def is_seen_by(self, request: ConditioningRequest) -> bool:
        """Whether it applies to the row of a request. In guess mode guidance leads away from a row without it; for a
        network that pools its residuals that is always so, as in diffusers."""
        return not (request.is_negative and (self.request.guess_mode or self.network.pools))

    def of_row(self) -> RowControl:
        """It, as the backend takes it."""
        is_scaled = self.request.guess_mode and not self.network.pools
        return RowControl(self.network, self.hint, self.request.scale, is_scaled)


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a batch of images, as `ServedModel.denoise` takes it.

    Attributes:
        tensors: By name, each (B, …) with the same leading batch dimension: for a class-conditional network
            `label` (B,) int64; for a text-conditioned one hidden states, a pooled vector and size ids.
        controls: The ControlNets of each row; empty if no row has some. They do not count for `shapes`: rows with and
            without them share a batch.
    """

    tensors: Mapping[str, Tensor]
    controls: tuple[tuple[ControlConditioning, ...], ...] = ()

    def __post_init__(self) -> None:
        assert len({len(tensor) for tensor in self.tensors.values()}) == 1, "one leading batch dimension for all"
        assert len(self.controls) in (0, len(self)), "controls of each row"

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each tensor without its batch dimension."""
        return tuple(tuple(tensor.shape[1:]) for tensor in self.tensors.values())

    @property
    def row_controls(self) -> tuple[tuple[ControlConditioning, ...], ...]:
        """The ControlNets of each row."""
        return self.controls or ((),) * len(self)

    def applying(self, row: int, rows: int) -> tuple[bool, ...]:
        """Whether each of its ControlNets applies to a row of a plan of so many rows."""
        return tuple(control.applies(row, rows) for own in self.controls for control in own)

    def at(self, row: int, rows: int) -> Conditioning:
        """The conditioning with those ControlNets alone that apply to a row of a plan of so many rows."""
        if not self.controls:
            return self
        kept = (tuple(each for each in own if each.applies(row, rows)) for own in self.controls)
        return Conditioning(self.tensors, tuple(kept))

    @classmethod
    def stack(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join the batches of several conditionings of one model into one batch, in order."""
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors}
        if not any(part.controls for part in parts):
            return cls(tensors)
        return cls(tensors, tuple(own for part in parts for own in part.row_controls))

    def select(self, index: Tensor | slice) -> Conditioning:
        """The conditioning of some images of the batch."""
        tensors = {name: tensor[index] for name, tensor in self.tensors.items()}
        if not self.controls or isinstance(index, slice):
            return Conditioning(tensors, self.controls[index] if isinstance(index, slice) else ())
        return Conditioning(tensors, tuple(self.controls[row] for row in index.tolist()))

    def to(self, device: torch.device) -> Conditioning:
        """The same on `device`, where ControlNets are from the start."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.controls)
