"""Whether a folder holds all files of a model that is served, as far as that needs no torch."""

from __future__ import annotations

from pathlib import Path

from denoised.model.bounded_files import MAX_TOKENIZER_BYTES, check_regular, read_json
from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.text_to_image.pipelines import (
    check_text_weights,
    is_text_pipeline,
    pipeline_class,
    tokenizer_parts,
)
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
    """Check that each tokenizer of a text pipeline has its vocabulary, in files that can be read."""
    for path in (folder / part for part in tokenizer_parts(pipeline_class(folder))):
        whole, vocabulary, merges = (path / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        if not whole.exists() and not (vocabulary.exists() and merges.exists()):
            raise CheckpointError(f"{path}: there is neither tokenizer.json nor vocab.json with merges.txt")
        for file in (whole, vocabulary, merges):
            if file.exists() and check_regular(file) > MAX_TOKENIZER_BYTES:
                raise CheckpointError(f"{file}: is larger than {MAX_TOKENIZER_BYTES // 1024**2} MiB")
