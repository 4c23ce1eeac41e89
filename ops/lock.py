"""Write requirements.lock: one version of everything that pyproject.toml asks for, extras and build backend included.

    python ops/lock.py               keep the versions that stand, add and drop what pyproject.toml says
    python ops/lock.py --upgrade     take the newest versions

The benchmark's peers have a lock of their own, bench/peers/requirements.lock, from the group `peers`; what both use has
one version in both.

pip does the choosing. The files name no index, no hash and no build of torch (`+cpu`, `+cu130`): where one is read, pip
takes the build, and the CUDA packages that build asks for, from wherever it is set up to look.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PEERS_LOCK = ROOT / "bench" / "peers" / "requirements.lock"
HEADER = """\
# Written by `make lock` (ops/lock.py) from pyproject.toml; do not edit.
# Newest versions: python ops/lock.py --upgrade
"""
# What a GPU build of torch brings along; another build brings others, or none.
OF_TORCH = re.compile(r"(nvidia|cuda)-.+|triton|pytorch-triton.*")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write requirements.lock.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions, not those that stand")
    upgrade = parser.parse_args().upgrade

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lock(LOCK, requirements(pyproject), [] if upgrade else [LOCK])
    lock(PEERS_LOCK, pyproject["dependency-groups"]["peers"], [LOCK] if upgrade else [LOCK, PEERS_LOCK])


def lock(path: Path, asked: list[str], standing: list[Path]) -> None:
    """Write one file; the versions in `standing` are kept, as far as those files exist."""
    chosen = resolve(asked, [file for file in standing if file.exists()])
    conditions = markers(asked)
    pins = [
        f"{name}=={version}{conditions.get(name, '')}"
        for name, version in sorted(chosen.items())
        if not OF_TORCH.fullmatch(name)
    ]
    path.write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(pins)} packages")


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """All that is asked for: by the project, by each of its extras, by its build."""
    project = pyproject["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(r for extra in extras for r in extra), *pyproject["build-system"]["requires"]]


def resolve(asked: list[str], standing: list[Path]) -> dict[str, str]:
    """The version pip would install of each package, by normalised name, without installing any."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report)]
        for file in standing:
            command += ["--constraint", str(file)]
        if subprocess.run([*command, *asked], check=False).returncode != 0:
            sys.exit("lock: pip found no set of versions that fits; nothing was written")
        packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normalised(p["metadata"]["name"]): p["metadata"]["version"].partition("+")[0] for p in packages}


def markers(asked: list[str]) -> dict[str, str]:
    """The condition on a package that only some systems get, by normalised name."""
    conditional = (r.partition(";") for r in asked if ";" in r)
    return {normalised(re.split(r"[^\w.-]", r)[0]): f"; {marker.strip()}" for r, _, marker in conditional}


def normalised(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
