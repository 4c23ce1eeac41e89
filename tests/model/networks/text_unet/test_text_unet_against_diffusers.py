"""The text-conditioned U-Net against diffusers' `UNet2DConditionModel`: same names, same weights, same output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from torch import Tensor

from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from denoised.model.networks.text_unet.text_unet_embeddings import guidance_features
from tests.model.networks.text_unet.text_unet_configs import PUBLISHED, PUBLISHED_PARAMETERS, SMALL, TWO_LEVELS


def shapes_of_diffusers(raw: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in UNet2DConditionModel(**raw).state_dict().items()}


def shapes_of_ours(raw: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = TextUNet(TextUNetConfig.from_dict(raw))
    return {key: value.shape for key, value in network.state_dict().items()}


def inputs_of(config: TextUNetConfig) -> dict[str, Tensor]:
    """Random inputs of every kind that a network takes, in our names; two images."""
    draw = torch.Generator().manual_seed(1)
    height, width = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    inputs = {
        "x": torch.randn(2, config.in_channels, height, width, generator=draw),
        "t": torch.tensor([1, 981]),
        "context": torch.randn(2, 7, config.transformer(0).context_dim, generator=draw),
    }
    if config.num_class_embeds is not None or config.class_embed_type == "timestep":
        inputs["label"] = torch.tensor([3, 10])
    if config.class_embed_type == "projection":
        inputs["label"] = torch.randn(2, config.projection_class_embeddings_input_dim, generator=draw)
    if config.addition_embed_type == "text_time":
        count = (config.projection_class_embeddings_input_dim - 16) // config.addition_time_embed_dim
        inputs["pooled"] = torch.randn(2, 16, generator=draw)
        inputs["size_ids"] = torch.randint(0, 1024, (2, count), generator=draw).float()
    if config.time_cond_proj_dim is not None:
        inputs["guidance"] = torch.tensor([1.5, 8.0])
    return inputs


def evaluate_diffusers(network: UNet2DConditionModel, inputs: dict[str, Tensor]) -> Tensor:
    guidance = None
    if "guidance" in inputs:
        guidance = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
            None, inputs["guidance"] - 1, network.config.time_cond_proj_dim
        )
    return network(
        inputs["x"],
        inputs["t"],
        inputs["context"],
        class_labels=inputs.get("label"),
        timestep_cond=guidance,
        added_cond_kwargs={"text_embeds": inputs.get("pooled"), "time_ids": inputs.get("size_ids")},
    ).sample


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_tensors_of_diffusers(name: str) -> None:
    """Key set, shapes and parameter count, without allocating a weight."""
    ours = shapes_of_ours(PUBLISHED[name])
    assert ours == shapes_of_diffusers(PUBLISHED[name])
    parameters = sum(shape.numel() for shape in ours.values())
    assert parameters == PUBLISHED_PARAMETERS.get(name, parameters)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_weights_give_the_output_of_diffusers(name: str, stir: Callable[..., None]) -> None:
    """One forward pass equal to 1e-5 in float32, each image at its own noise level and with its own text."""
    config = TextUNetConfig.from_dict(SMALL[name])
    theirs, ours = UNet2DConditionModel(**SMALL[name]).eval(), TextUNet(config).eval()
    stir(theirs)
    ours.load_state_dict(theirs.state_dict())
    inputs = inputs_of(config)
    with torch.inference_mode():
        expected = evaluate_diffusers(theirs, inputs)
        found = ours(**inputs)
    assert expected.std() > 0.05, "the output of these weights is almost constant"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changed", ["t", "context", "pooled", "size_ids", "guidance"])
def test_every_input_changes_the_output(changed: str, stir: Callable[..., None]) -> None:
    config = TextUNetConfig.from_dict(SMALL["lcm, distilled from sdxl, shrunken"])
    network = TextUNet(config).eval()
    stir(network)
    inputs = inputs_of(config)
    with torch.inference_mode():
        before = network(**inputs)
        after = network(**{**inputs, changed: inputs[changed] * 0.5})
    assert (before - after).abs().max() > 1e-3


def test_weights_in_half_precision_give_a_result_near_that_of_float32(stir: Callable[..., None]) -> None:
    config = TextUNetConfig.from_dict({**TWO_LEVELS, "upcast_attention": True})
    network = TextUNet(config).eval()
    stir(network)
    inputs = inputs_of(config)
    halved = {key: value.bfloat16() if key in ("x", "context") else value for key, value in inputs.items()}
    with torch.inference_mode():
        expected = network(**inputs)
        found = network.bfloat16()(**halved)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_guidance_scales_have_the_features_of_diffusers() -> None:
    scales = torch.tensor([1.0, 1.5, 7.5, 14.0])
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1, 256)
    torch.testing.assert_close(guidance_features(scales, 256), expected, rtol=0, atol=0)


def test_diffusers_reads_a_written_config_as_the_same() -> None:
    for raw in (*PUBLISHED.values(), *SMALL.values()):
        ours = TextUNetConfig.from_dict(raw)
        assert TextUNetConfig.from_dict(ours.to_dict()) == ours
    for raw in SMALL.values():
        written = TextUNetConfig.from_dict(raw).to_dict()
        with torch.device("meta"):
            theirs = dict(UNet2DConditionModel.from_config(written).config)
        assert all(plain(theirs[key]) == value for key, value in written.items())


def test_the_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = {key: value for key, value in UNet2DConditionModel().config.items() if not key.startswith("_")}
    assert {key: plain(value) for key, value in theirs.items()} == TextUNetConfig().to_dict()


def plain(value: object) -> object:
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value
