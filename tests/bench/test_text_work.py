"""The benchmark's text-to-image work: the peers do the same as denoised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.load.text_model import CAPTIONS, write_random_model
from bench.peers.network import NetworkOptions
from bench.peers.pipeline import ImageParameters
from bench.peers.text_pipeline import TextToImage, load_pipeline
from bench.sections.load_sections import TOLERANCE
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import load_text_model
from denoised.model.serving.sampling import sample


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_peers_draw_the_same_pictures_as_denoised(guidance_scale: float, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "emoji")
    pipeline = load_pipeline(str(folder), NetworkOptions(), ())
    assert isinstance(pipeline, TextToImage)
    given = [ImageParameters(0, 40 + k, 4, guidance_scale, CAPTIONS[k]) for k in range(2)]
    model = load_text_model(folder)
    requests = [ConditioningRequest(prompt=each.prompt) for each in given]
    x0 = sample(model, requests, seed=40, sampler="ddim", steps=4, guidance_scale=guidance_scale)
    for picture, expected in zip(pipeline(given), model.decode(x0), strict=True):
        assert np.abs(np.asarray(picture, dtype=np.int64) - expected.astype(np.int64)).max() <= TOLERANCE
