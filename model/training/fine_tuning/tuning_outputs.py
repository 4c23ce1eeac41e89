"""What a fine-tuning run writes besides its log: checkpoints, and a model folder or an adapter that can be served.

OUT/model/                  a copy of the model that was fine-tuned, with the averaged weights of the U-Net in float16
OUT/loras/OUT.safetensors   or, with a rank, the averaged adapter, named after the folder of the run
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.checkpoints.weight_files import WEIGHTS
from denoised.model.training.fine_tuning.fine_tuner import FineTuner
from denoised.model.training.fine_tuning.lora_net import save_lora
from denoised.model.training.run.run_checkpoints import save_state
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.training_run import RunOutputs

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index*.json", "*.bin", "*.msgpack")


def adapter_file(folder: RunFolder) -> Path:
    """The adapter of a run."""
    return folder.path / "loras" / f"{folder.path.absolute().name}.safetensors"


def tuning_outputs(base: Path) -> RunOutputs[FineTuner]:
    """How a run writes its results. base: the folder of the model that is fine-tuned."""

    def save(learner: FineTuner, folder: RunFolder) -> None:
        save_state(learner, folder)
        if learner.config.lora_rank:
            save_lora(adapter_file(folder), learner.ema)
        else:
            save_tuned_model(base, folder.model, learner.ema)

    return RunOutputs(save, _draw_nothing)


def save_tuned_model(base: Path, path: Path, unet_weights: Mapping[str, Tensor]) -> None:
    """Write a copy of a model folder with other weights of the U-Net. The other parts are copied once."""
    if not (path / "model_index.json").exists():
        shutil.copytree(base, path, ignore=_ignore_unet_weights, dirs_exist_ok=True)
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in unet_weights.items()}
    write_atomically(
        path / "unet" / WEIGHTS, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"})
    )


def _ignore_unet_weights(folder: str, names: list[str]) -> set[str]:
    if Path(folder).name != "unet":
        return set()
    return set(shutil.ignore_patterns(*WEIGHT_FILES)(folder, names))


def _draw_nothing(learner: FineTuner, folder: RunFolder) -> None:
    """No sheet of samples: a server shows what the model has learned."""
