"""`python -m denoised`: the same as the `denoised` command."""

import os
import sys

# `python -m` puts the working directory first on the path, where a file such as `redis.py` or `rich/` would be imported
# in place of the installed package. `python -P -m denoised` and the console script leave it out.
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109
    del sys.path[0]

from denoised.cli.main import main

main()
