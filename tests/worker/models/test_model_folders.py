"""Which folders should be served: those of the start, and those in a folder that changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from denoised.worker.models.model_folders import SETTLE_SECONDS, ModelFolders


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folders(tmp_path: Path, clock: Clock) -> ModelFolders:
    return ModelFolders({"bundled": tmp_path / "zoo"}, tmp_path / "models", clock)


def settled(folders: ModelFolders, clock: Clock) -> list[str]:
    folders.scan()
    clock.now += SETTLE_SECONDS
    return list(folders.scan())


def test_a_folder_is_read_when_it_has_not_changed_for_a_while(
    folders: ModelFolders, tmp_path: Path, clock: Clock
) -> None:
    assert list(folders.scan()) == ["bundled"], "the watched folder does not exist yet"
    weights = tmp_path / "models" / "shoes" / "unet" / "weights"
    weights.parent.mkdir(parents=True)
    for size in range(3):
        weights.write_text("w" * size)
        assert list(folders.scan()) == ["bundled"]
        assert folders.unsettled == {"shoes"}
        clock.now += SETTLE_SECONDS / 2
    assert settled(folders, clock) == ["bundled", "shoes"]
    before = folders.scan()["shoes"].fingerprint
    os.utime(weights, ns=(1, 1))
    assert "shoes" not in folders.scan()
    assert settled(folders, clock) == ["bundled", "shoes"]
    assert folders.scan()["shoes"].fingerprint != before
    assert folders.scan()["bundled"].fingerprint == ()


def test_links_are_models_and_files_and_hidden_names_are_not(
    folders: ModelFolders, tmp_path: Path, clock: Clock
) -> None:
    models = tmp_path / "models"
    for name in ("shoes", ".copying", "line\nbreak"):
        (models / name).mkdir(parents=True)
    (models / "notes.txt").write_text("no model")
    (tmp_path / "elsewhere").mkdir()
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    (models / "dangling").symlink_to(tmp_path / "nowhere")
    assert settled(folders, clock) == ["bundled", "linked", "shoes"]


def test_a_model_of_the_start_has_precedence(folders: ModelFolders, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "models" / "bundled").mkdir(parents=True)
    settled(folders, clock)
    assert folders.scan()["bundled"].folder == tmp_path / "zoo"


def test_a_folder_that_is_deleted_is_gone_at_once(folders: ModelFolders, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "models" / "shoes").mkdir(parents=True)
    assert settled(folders, clock) == ["bundled", "shoes"]
    shutil.rmtree(tmp_path / "models")
    assert list(folders.scan()) == ["bundled"]
    assert folders.unsettled == frozenset()
