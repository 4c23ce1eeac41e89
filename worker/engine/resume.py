"""Resume points: what another attempt needs to continue the images of a job, as bytes that are safe to load.

The format is a safetensors file (a JSON header and raw little-endian numbers, nothing that could be executed):
`images` (k,) int64 the indices of the images, `rows` (k,) int64, and for image i the tensor `registers.{i}` (R, …)
float32. The number of noise draws that an image has taken follows from its row and its plan, so it is not stored:
`Trajectory.resume` skips them. The metadata hold `format`, the version of all this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from denoised.jobs.format import FORMAT
from denoised.model.diffusion.plans import Plan
from denoised.worker.errors import ResumeError

ROWS, INDICES, REGISTERS = "rows", "images", "registers."
LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins


@dataclass(frozen=True)
class ResumePoint:
    """One image between two evaluations: the next row of its plan, and its registers (R, …).

    After the last row the image waits for the decoder.
    """

    row: int
    registers: Tensor


def to_bytes(images: Mapping[int, ResumePoint]) -> bytes:
    """Serialize the resume points of a job's images, by index."""
    tensors = {f"{REGISTERS}{index}": _stored(saved.registers) for index, saved in images.items()}
    tensors[INDICES] = torch.tensor(list(images), dtype=torch.int64)
    tensors[ROWS] = torch.tensor([saved.row for saved in images.values()], dtype=torch.int64)
    return save(tensors, metadata={"format": str(FORMAT)})


def from_bytes(data: bytes) -> dict[int, ResumePoint]:
    """The inverse of `to_bytes`.

    Raises:
        ResumeError: for anything that `to_bytes` does not write, such as a point of a newer version.
    """
    try:
        tensors, version = load(data), _format(data)
        indices, rows = tensors.pop(INDICES).tolist(), tensors.pop(ROWS).tolist()
        saved = {
            index: ResumePoint(row, tensors.pop(f"{REGISTERS}{index}"))
            for index, row in zip(indices, rows, strict=True)
        }
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ResumeError(f"the resume point cannot be read: {type(error).__name__}: {error}") from error
    if version > FORMAT:
        raise ResumeError(f"the resume point has format {version} (allowed: up to {FORMAT})")
    if tensors:
        raise ResumeError(f"the resume point holds {sorted(tensors)[0]}, which belongs to none of its images")
    return saved


def check(saved: ResumePoint, plan: Plan, shape: tuple[int, ...]) -> None:
    """Check that an image of a plan can continue from a resume point.

    shape: of what is denoised, without the registers.

    Raises:
        ResumeError: if it was saved under another plan or shape.
    """
    first = min(1, plan.evaluations)
    if not first <= saved.row <= plan.evaluations:
        raise ResumeError(
            f"the resume point is at row {saved.row} of {plan.evaluations} (allowed: {first} … {plan.evaluations})"
        )
    expected = (plan.registers, *shape)
    if tuple(saved.registers.shape) != expected or saved.registers.dtype != torch.float32:
        found = f"{tuple(saved.registers.shape)} {saved.registers.dtype}"
        raise ResumeError(f"the resume point's registers are {found} (allowed: {expected} torch.float32)")


def _format(data: bytes) -> int:
    """The format that a valid safetensors file names; 1 if it names none."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    return int(header.get("__metadata__", {}).get("format", 1))


def _stored(registers: Tensor) -> Tensor:
    return registers.detach().to("cpu", torch.float32, copy=True).contiguous()
