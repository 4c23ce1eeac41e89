"""What a fine-tuning run writes besides its log: checkpoints, and a model folder or an adapter that can be served.

OUT/model/                  a copy of the model that was fine-tuned, with the averaged weights of the trained networks,
                            its U-Net and perhaps its text encoders, in float16
OUT/loras/OUT.safetensors   or, with a rank, the averaged adapter, named after the folder of the run
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.folders import MODEL_INDEX
from denoised.model.checkpoints.text_to_image.pipeline_writing import TEXT_ENCODER_WEIGHTS, save_json, save_weights
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


def save_tuned_model(base: Path, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a copy of a model folder with other weights of some networks. The other parts are copied once.

    weights: by component and name, such as `unet.conv_in.weight`.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        part, _, own = name.partition(".")
        parts.setdefault(part, {})[own] = value.half()
    if not (path / MODEL_INDEX).exists():
        shutil.copytree(base, path, ignore=_ignore_weights_of(parts), dirs_exist_ok=True)
    for part, tensors in parts.items():
        save_weights(path / part / (WEIGHTS if part == "unet" else TEXT_ENCODER_WEIGHTS), tensors)
        if part != "unet":
            _name_float32(path / part / "config.json")


def _name_float32(config: Path) -> None:
    """Have transformers compute in float32 whatever the type of the weights, as diffusers does with the U-Net."""
    content = {name: value for name, value in read_json(config).items() if name != "torch_dtype"}
    save_json(config, {**content, "dtype": "float32"})


def _ignore_weights_of(parts: Collection[str]) -> Callable[[str, list[str]], set[str]]:
    def ignored(folder: str, names: list[str]) -> set[str]:
        if Path(folder).name not in parts:
            return set()
        return set(shutil.ignore_patterns(*WEIGHT_FILES)(folder, names))

    return ignored


def _draw_nothing(learner: FineTuner, folder: RunFolder) -> None:
    """No sheet of samples: a server shows what the model has learned."""
