"""`make lock` keeps locked versions, and gives up those that a new requirement excludes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ops import lock

WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    base = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{base}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{base}/WHEEL", WHEEL)
        archive.writestr(f"{base}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the only packages that pip finds."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for version in ("2.9", "3.0", "4.0"):
        wheel(folder, "dates", version)
    for version in ("1.0", "1.1"):
        wheel(folder, "other", version)
    wheel(folder, "old_client", "5.0", "dates<3")
    wheel(folder, "new_client", "5.0", "dates>=4", "other")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    return folder


def locked(*lines: str) -> dict[str, str]:
    return {lock.normalized(line.partition("==")[0]): line for line in lines}


@pytest.mark.parametrize(("client", "pin", "version"), [("old-client", "4.0", "2.9"), ("new-client", "3.5", "4.0")])
def test_a_pin_that_no_longer_fits_moves_down_or_up_and_the_others_stay(
    client: str, pin: str, version: str, index: Path
) -> None:
    """dates 3.5 is not offered any more, besides."""
    found = lock.resolve(["dates", "other", client], locked(f"dates=={pin}", "other==1.0"))
    assert found == {"dates": version, "other": "1.0", client: "5.0"}


def test_requirements_that_contradict_each_other_end_it(index: Path) -> None:
    with pytest.raises(SystemExit, match="nothing was written"):
        lock.resolve(["old-client", "new-client"], locked("other==1.0"))


def test_a_package_of_both_files_has_the_version_of_the_first(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    first, second = tmp_path / "first.lock", tmp_path / "second.lock"
    first.write_text("# header\ndates==2.9\n", encoding="utf-8")
    second.write_text("dates==3.0\nother==1.0; python_version > '3'\n", encoding="utf-8")
    lock.lock(second, ["dates", "other"], [first, second, tmp_path / "missing.lock"])
    assert second.read_text(encoding="utf-8") == lock.HEADER + "dates==2.9\nother==1.0\n"
