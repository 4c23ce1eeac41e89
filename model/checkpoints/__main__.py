"""Check model folders, as far as that needs no torch: `python -m denoised.model.checkpoints FOLDER...`

`denoised serve` runs this before it starts anything. A worker checks the same with the same functions, and then the
rest. The exit code is 1, with one line on stderr, if a folder cannot be served.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from denoised.model.checkpoints.folder_check import check_folder
from denoised.model.errors import CheckpointError


def main(folders: Sequence[str]) -> None:
    """Check folders in order and exit at the first problem."""
    try:
        for folder in folders:
            check_folder(Path(folder))
    except CheckpointError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
