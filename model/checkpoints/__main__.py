"""Check, without torch, that folders contain the files of a model: `python -m denoised.model.checkpoints FOLDER...`

`denoised serve` runs this before it starts anything; the worker checks everything else. The exit code is 1, with one
line on stderr, if a folder cannot be served.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from denoised.model.checkpoints.folders import find_files, read_json
from denoised.model.errors import CheckpointError


def main(folders: Sequence[str]) -> None:
    """Check folders in order and exit at the first problem."""
    try:
        for folder in folders:
            files = find_files(Path(folder))
            for config in (files.unet_config, files.scheduler_config):
                read_json(config)
    except CheckpointError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
