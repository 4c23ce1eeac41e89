"""The `denoised` command, also as `python -m denoised`."""

import os
import sys


def main() -> None:
    """Run the command with installed modules only."""
    _ignore_working_directory()
    from denoised.cli.main import main as run

    run()


def _ignore_working_directory() -> None:
    """Take the working directory off the path: a `redis.py` or `rich/` there would replace the installed package.

    `python -m` puts it first (except with -P), and so does an empty entry in PYTHONPATH, such as `:/opt/lib` has. Child
    processes start with -P and inherit the PYTHONPATH without empty entries.
    """
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:  # it was removed
        here = ""
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if "" in entries and any(entries):
        for entry in ("", here):
            if entry in sys.path:
                sys.path.remove(entry)  # the first of them: an editable install may have added another
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))


if __name__ == "__main__":
    main()
