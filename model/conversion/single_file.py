"""A checkpoint in a single file: what it holds, and which model it is.

Nothing is read but the header until the networks' names and shapes are known to fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from denoised.model.checkpoints.weight_files import find_shards
from denoised.model.checkpoints.weights import FLOATS, StoredTensor, stored_tensors
from denoised.model.errors import CheckpointError

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
# Where each model's text encoders are.
CLIP_ALONE, OPEN_CLIP_ALONE = "cond_stage_model.transformer.", "cond_stage_model.model."
FIRST_OF_TWO, SECOND_OF_TWO = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
REFINER = "conditioner.embedders.0.model."
# Tensors whose presence alone says something, in some files of SDXL.
V_PREDICTION_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
EXAMPLES = "Stable Diffusion 1.x, 2.x and SDXL base, with the names of the original code"


class Family(StrEnum):
    """The families that are distinguished."""

    SD1 = "Stable Diffusion 1.x"
    SD2 = "Stable Diffusion 2.x"
    SDXL = "Stable Diffusion XL"


@dataclass(frozen=True)
class SingleFile:
    """The header of a file.

    Attributes:
        path: of the file.
        tensors: by name.
        metadata: of the file.
        family: which model it is.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    family: Family

    @classmethod
    def open(cls, path: Path) -> SingleFile:
        """Read a file's header.

        Raises:
            CheckpointError: for a file that is not a safetensors file, and for a model that is none of `Family`.
        """
        if path.suffix != ".safetensors":
            find_shards(path)  # a pickle is refused by what it is
            raise CheckpointError(f"{path}: is not a .safetensors file")
        find_shards(path)
        tensors = {tensor.name: tensor for tensor in stored_tensors(path)}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return cls(path, tensors, metadata, _family(path, tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            CheckpointError: if the file has no such tensor, or one without numbers.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path}: lacks {name!r}")
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{self.path}: {name!r} is of type {tensor.dtype} (supported: {', '.join(FLOATS)})")
        return tensor.shape

    def has(self, name: str) -> bool:
        """Whether there is a tensor of a name, or names that begin with it if it ends with a point."""
        return name in self.tensors or (name.endswith(".") and any(each.startswith(name) for each in self.tensors))

    def count(self, before: str, after: str) -> int:
        """How many numbers 0, 1, … stand between two parts of names, such as the blocks of a level."""
        number = 0
        while f"{before}{number}{after}" in self.tensors:
            number += 1
        return number

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of some names, in the file's precision.

        Raises:
            CheckpointError: if the file is not complete.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path}: not a complete safetensors file ({error})") from error


def _family(path: Path, names: Mapping[str, object]) -> Family:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if not has(UNET):
        raise CheckpointError(f"{path}: {_describe(names)}; convert takes {EXAMPLES}")
    if has(REFINER):
        raise CheckpointError(f"{path}: is a refiner of Stable Diffusion XL, which is not served")
    if not has(AUTOENCODER):
        raise CheckpointError(f"{path}: holds no autoencoder; convert takes {EXAMPLES}")
    prefixes = {SECOND_OF_TWO: Family.SDXL, OPEN_CLIP_ALONE: Family.SD2, CLIP_ALONE: Family.SD1}
    for prefix, family in prefixes.items():
        if has(prefix):
            return family
    raise CheckpointError(f"{path}: holds a U-Net but no text encoder; convert takes {EXAMPLES}")


def _describe(names: Iterable[str]) -> str:
    """What a file without a U-Net of the original names probably is."""
    kinds = {
        r"lora": "is a low-rank adapter, no whole model",
        r"control_model\.": "is a ControlNet",
        r"joint_blocks\.": "is a Stable Diffusion 3 model",
        r"double_blocks\.": "is a flow-matching transformer",
        r"down_blocks\.": "holds a U-Net with diffusers' names, which belongs in a folder with its config",
        r"^encoder\.down\.": "is an autoencoder alone",
    }
    listed = list(names)
    found = (kind for part, kind in kinds.items() if any(re.search(part, name) for name in listed))
    return next(found, "holds no U-Net")
