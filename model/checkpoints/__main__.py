"""Check model folders, as far as that needs no torch: `python -m denoised.model.checkpoints FOLDER...`

`denoised serve` runs this before it starts anything. A worker checks the same with the same functions, and then the
rest. The exit code is 1, with one line on stderr, if a folder cannot be served.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from denoised.model.checkpoints.bounded_files import read_json
from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.checkpoints.folders import find_files
from denoised.model.checkpoints.pipelines import check_text_weights, is_text_pipeline
from denoised.model.checkpoints.unet_config_file import image_size, read_unet_config
from denoised.model.checkpoints.weight_files import find_shards, find_weights
from denoised.model.errors import CheckpointError


def main(folders: Sequence[str]) -> None:
    """Check folders in order and exit at the first problem."""
    try:
        for folder in folders:
            if is_text_pipeline(Path(folder)):
                check_text_weights(Path(folder))
                read_card_file(Path(folder))
                continue
            files = find_files(Path(folder))
            image_size(files.unet_config, read_unet_config(files.unet_config))
            read_json(files.scheduler_config)
            read_card_file(Path(folder))
            find_shards(find_weights(files.weights))
    except CheckpointError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
