"""Whether a folder holds all files of a model that is served, as far as that needs no torch."""

from __future__ import annotations

from pathlib import Path

from denoised.model.checkpoints.bounded_files import read_json
from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.checkpoints.folders import MODEL_INDEX, find_files
from denoised.model.checkpoints.text_to_image.pipelines import check_text_weights, is_text_pipeline
from denoised.model.checkpoints.unet_config_file import image_size, read_unet_config
from denoised.model.checkpoints.weight_files import find_shards, find_weights
from denoised.model.errors import CheckpointError


def check_folder(folder: Path) -> None:
    """Check the files of a model folder.

    Raises:
        CheckpointError: naming the first one that is missing or cannot be used.
    """
    if is_text_pipeline(folder):
        check_text_weights(folder)
        _check_tokenizers(folder)
        read_card_file(folder)
        return
    files = find_files(folder)
    image_size(files.unet_config, read_unet_config(files.unet_config))
    read_json(files.scheduler_config)
    read_card_file(folder)
    find_shards(find_weights(files.weights))


def _check_tokenizers(folder: Path) -> None:
    """Check that each tokenizer of a text pipeline has its vocabulary."""
    for part in read_json(folder / MODEL_INDEX):
        path = folder / part
        whole, vocabulary, merges = (path / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        if part.startswith("tokenizer") and not whole.exists() and not (vocabulary.exists() and merges.exists()):
            raise CheckpointError(f"{path}: there is neither tokenizer.json nor vocab.json with merges.txt")
