"""Which models a worker serves, and under which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import ZOO
from denoised.worker.model_loading import ORDER, bundled, load_models, named_folders


def test_the_bundled_models_are_served_in_a_stated_order() -> None:
    names = [name for name in ORDER if (ZOO / name).is_dir()]
    assert names[-3:] == ["fashion-mnist", "digits", "fashion-mnist-consistency"]
    assert [folder.name for folder in bundled()] == names
    models = load_models([], device="cpu", max_images=16)
    assert list(models) == names
    assert models["digits"].card.labels == list("0123456789")
    assert models["digits"].shape == (1, 8, 8)


def test_the_emoji_come_first_and_folders_without_a_place_last(tmp_path: Path) -> None:
    for name in ("digits", "aquarium", "fashion-mnist", "emoji", "zebras"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    (tmp_path / "fashion-mnist-features").mkdir()
    assert [each.name for each in bundled(tmp_path)] == ["emoji", "fashion-mnist", "digits", "aquarium", "zebras"]


def test_two_models_of_one_name_are_refused_naming_both(tmp_path: Path) -> None:
    hub, commit = tmp_path / "hub", "0123456789" * 4
    ours, theirs = (hub / f"models--{owner}--sd-turbo/snapshots/{commit}" for owner in ("our-lab", "stabilityai"))
    assert list(named_folders([theirs])) == ["sd-turbo"]
    with pytest.raises(CheckpointError, match=r"^our-lab/sd-turbo@0123456 and stabilityai/sd-turbo@0123456 would both"):
        named_folders([ours, theirs])
    with pytest.raises(CheckpointError, match=rf"^stabilityai/sd-turbo@0123456 and {tmp_path}/sd-turbo would both be"):
        named_folders([theirs, tmp_path / "sd-turbo"])
    link = tmp_path / "turbo-of-ours"
    link.symlink_to(ours)
    assert list(named_folders([link, theirs])) == ["turbo-of-ours", "sd-turbo"]
