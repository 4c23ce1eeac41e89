"""Which files of a repository are downloaded: those that are read when the model is served, and nothing else.

Configs, tokenizers and safetensors. Never pickles, and never Python files: the code of a repository is not run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from denoised.model.checkpoints.card_file import CARD_FILE
from denoised.model.checkpoints.folders import MODEL_INDEX
from denoised.model.checkpoints.text_to_image.pipelines import UNUSED_PARTS
from denoised.model.checkpoints.weight_files import ENCODER, NETWORK, PICKLES, VARIANTS
from denoised.model.errors import HubError

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CONFIGS = ("config.json", "scheduler_config.json")
HALF_PRECISIONS = ("float16", "bfloat16")
ONLY_PICKLES = (
    "has its weights as pickles alone, which can run code: convert them to safetensors (in diffusers: from_pretrained, "
    "then save_pretrained), and serve the folder"
)


def select_files(paths: Collection[str], index: Mapping[str, Any], precision: str) -> list[str]:
    """The files of a pipeline's repository that are downloaded, the weights last.

    paths: all files of the repository.
    index: the content of `model_index.json`; empty if the repository has none.
    precision: what the model is served in; for half precisions, weights in half precision are chosen if there are any.

    Raises:
        HubError: if a part has no weights in safetensors.
    """
    parts = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    folders = [f"{part}/" for part in parts if part not in UNUSED_PARTS] or ["unet/", "scheduler/"]
    if "unet/config.json" not in paths:
        folders.append("")  # the layout with the network at the root
    small, weights = [name for name in (str(MODEL_INDEX), CARD_FILE) if name in paths], []
    for folder in folders:
        names = {path.removeprefix(folder) for path in paths if path.startswith(folder)}
        small += [f"{folder}{name}" for name in (*CONFIGS, *(TOKENIZER_FILES if folder else ())) if name in names]
        weights += [f"{folder}{name}" for name in choose_weights(names, precision)]
    if not weights:
        pickles = any(path.endswith(PICKLES) for path in paths)
        raise HubError(ONLY_PICKLES if pickles else "has no weights in safetensors")
    return [*dict.fromkeys(small), *dict.fromkeys(weights)]


def select_tokenizer(paths: Collection[str]) -> list[str]:
    """The files of a tokenizer at the root of a repository."""
    return [name for name in TOKENIZER_FILES if name in paths]


def choose_weights(names: Collection[str], precision: str) -> list[str]:
    """The weights of one folder: a file, or an index and its shards; nothing if there are none.

    names: of the files in the folder.
    """
    variants: tuple[str, ...] = ("", *VARIANTS)
    if precision in HALF_PRECISIONS:
        variants = (*VARIANTS, "")
    for stem in (NETWORK, ENCODER):
        for variant in variants:
            suffix = f".{variant}" if variant else ""
            if (whole := f"{stem}{suffix}.safetensors") in names:
                return [whole]
            if (index := f"{stem}.safetensors.index{suffix}.json") in names:
                shard = re.compile(rf"{stem}{re.escape(suffix)}-\d+-of-\d+\.safetensors")
                return [index, *sorted(name for name in names if shard.fullmatch(name))]
    return []
