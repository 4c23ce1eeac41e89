"""Which models a worker serves if it is given none."""

from __future__ import annotations

from denoised.worker.model_loading import bundled, load_models


def test_the_bundled_models_are_the_garments_by_default_and_the_digits() -> None:
    assert [folder.name for folder in bundled()] == ["fashion-mnist", "digits"]
    models = load_models([], device="cpu", max_images=16)
    assert list(models) == ["fashion-mnist", "digits"]
    assert models["digits"].card.labels == list("0123456789")
    assert models["digits"].shape == (1, 8, 8)
