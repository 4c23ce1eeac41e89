"""Which models a worker serves if it is given none."""

from __future__ import annotations

from pathlib import Path

from denoised.model.serving.loading import ZOO
from denoised.worker.model_loading import ORDER, bundled, load_models


def test_the_bundled_models_are_served_in_a_stated_order() -> None:
    names = [name for name in ORDER if (ZOO / name).is_dir()]
    assert names[-2:] == ["fashion-mnist", "digits"]
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
