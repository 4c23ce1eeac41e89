"""Write requirements.lock: one version of every package that pyproject.toml and all its extras require.

    python ops/lock.py               keep the locked versions that are still possible; add and remove packages as
                                     pyproject.toml says
    python ops/lock.py --upgrade     use the newest versions

The benchmark's peers have their own lock file, bench/peers/requirements.lock, from the dependency group `peers`. A
package in both files has the same version.

pip chooses the versions. The files contain no index, no hash and no build of torch (`+cpu`, `+cu130`): pip chooses the
build, and the CUDA packages that it needs, from the index it is configured for.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PEERS_LOCK = ROOT / "bench" / "peers" / "requirements.lock"
HEADER = """\
# Written by `make lock` (ops/lock.py) from pyproject.toml; do not edit.
# Newest versions: python ops/lock.py --upgrade
"""
# Dependencies of a GPU build of torch; other builds have others, or none.
TORCH_BUILD_PACKAGES = re.compile(r"(nvidia|cuda)-.+|triton|pytorch-triton.*")
# How pip names a pin that contradicts a requirement, and one whose version is not offered any more.
CONFLICT = re.compile(r"(?:The user requested \(constraint\)|No matching distribution found for) ([\w.-]+)==")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write requirements.lock.")
    parser.add_argument("--upgrade", action="store_true", help="use the newest versions instead of the locked ones")
    upgrade = parser.parse_args().upgrade

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lock(LOCK, requirements(pyproject), [] if upgrade else [LOCK])
    lock(PEERS_LOCK, pyproject["dependency-groups"]["peers"], [LOCK] if upgrade else [LOCK, PEERS_LOCK])


def lock(path: Path, required: list[str], kept: list[Path]) -> None:
    """Write one lock file. Versions in the existing files of `kept` are kept as far as they fit together; those of the
    first file that has a package count."""
    chosen = resolve(required, {name: pin for file in reversed(kept) for name, pin in pins_of(file).items()})
    conditions = markers(required)
    pins = [
        f"{name}=={version}{conditions.get(name, '')}"
        for name, version in sorted(chosen.items())
        if not TORCH_BUILD_PACKAGES.fullmatch(name)
    ]
    path.write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(pins)} packages")


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """The requirements of the project, of each extra and of the build backend."""
    project = pyproject["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(r for extra in extras for r in extra), *pyproject["build-system"]["requires"]]


def pins_of(path: Path) -> dict[str, str]:
    """The lines of a lock file by the name of their package; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {normalized(line.partition("==")[0]): line for line in lines if "==" in line and not line.startswith("#")}


def resolve(required: list[str], pins: Mapping[str, str]) -> dict[str, str]:
    """The versions that pip would install, by normalized name. Installs nothing.

    pins: versions to keep, as lines of a lock file by name. Those that pip names as a cause of a conflict are given up:
    a requirement may have come that needs another version, higher or lower.
    """
    kept = dict(pins)
    while True:
        found, output = _resolve(required, kept)
        if found is not None:
            return found
        refused = {name for each in CONFLICT.findall(output) if (name := normalized(each)) in kept}
        if not refused:
            sys.exit(f"{output}\nlock: pip found no compatible set of versions; nothing was written")
        for name in sorted(refused):
            print(f"lock: {kept.pop(name)} does not fit any more")


def _resolve(required: list[str], pins: Mapping[str, str]) -> tuple[dict[str, str] | None, str]:
    """One attempt: the versions, or None and what pip says."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins.values()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(constraints)]
        done = subprocess.run([*command, *required], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            return None, done.stdout + done.stderr
        packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normalized(p["metadata"]["name"]): p["metadata"]["version"].partition("+")[0] for p in packages}, ""


def markers(required: list[str]) -> dict[str, str]:
    """The environment markers of requirements that have one, by normalized name."""
    conditional = (r.partition(";") for r in required if ";" in r)
    return {normalized(re.split(r"[^\w.-]", r)[0]): f"; {marker.strip()}" for r, _, marker in conditional}


def normalized(name: str) -> str:
    """A package's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
