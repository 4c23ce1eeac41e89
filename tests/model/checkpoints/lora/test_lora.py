"""Low-rank adapters in the dialects of peft, diffusers and kohya."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor, nn

from denoised.model.checkpoints.lora.lora import LoraTarget, read_lora
from denoised.model.checkpoints.original_names import original_module_name
from denoised.model.errors import CheckpointError
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.networks.text_unet.text_unet import TextUNet
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig
from tests.lora_adapters import diffusers, peft
from tests.model.networks.text_unet.text_unet_configs import PUBLISHED, SMALL

SDXL = TextUNetConfig.from_dict(SMALL["sdxl base, shrunken"])
RANK = 2
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CROSS_OUT = QUERY.replace("attn1.to_q", "attn2.to_out.0")
TEXT_QUERY = "text_model.encoder.layers.0.self_attn.q_proj"


def targets_of(component: str, network: nn.Module, config: TextUNetConfig | None = None) -> list[LoraTarget]:
    found = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            original = original_module_name(name, config) if config is not None else None
            aliases = (original,) if original is not None else ()
            found.append(LoraTarget(component, name, tuple(module.weight.shape), aliases))
    return found


@pytest.fixture(scope="module")
def targets() -> list[LoraTarget]:
    """The linear layers and convolutions of a small SDXL."""
    text = TextEncoderConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=12,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=9,
    )
    with torch.device("meta"):
        return [
            *targets_of("unet", TextUNet(SDXL), SDXL),
            *targets_of("text_encoder", TextEncoder(text, projected=False)),
            *targets_of("text_encoder_2", TextEncoder(text, projected=True)),
        ]


def halves(target: LoraTarget) -> tuple[Tensor, Tensor]:
    """A and B for a weight."""
    draw = torch.Generator().manual_seed(len(target.module))
    out, *rest = target.shape
    down = torch.randn(RANK, *rest, generator=draw)
    return down, torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=draw)


def kohya(target: LoraTarget, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    prefix = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}[target.component]
    name = f"lora_{prefix}_{target.module.replace('.', '_')}"
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}


def kohya_with_original_names(target: LoraTarget, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return kohya(LoraTarget(target.component, (*target.aliases, target.module)[0], target.shape), down, up)


@pytest.mark.parametrize("dialect", [peft, diffusers, kohya, kohya_with_original_names])
def test_every_layer_is_read_in_every_dialect(
    dialect: Callable[[LoraTarget, Tensor, Tensor], dict[str, Tensor]], targets: list[LoraTarget]
) -> None:
    pairs = {(target.component, target.module): halves(target) for target in targets}
    tensors: dict[str, Tensor] = {}
    for target in targets:
        tensors |= dialect(target, *pairs[target.component, target.module])
    layers = read_lora(tensors, targets)
    assert {(layer.component, layer.module) for layer in layers} == pairs.keys()
    for layer, target in zip(layers, targets, strict=True):
        down, up = pairs[layer.component, layer.module]
        assert torch.equal(layer.down, down)
        assert torch.equal(layer.up, up)
        assert layer.rank == RANK
        assert layer.scale == (1.0 if dialect in (peft, diffusers) else 0.5)
        assert layer.delta().shape == target.shape


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (f"unet.{QUERY.replace('attn1.', 'attn1.processor.')}_lora", QUERY),
        (f"{QUERY}.lora", QUERY),
        (
            f"unet.{QUERY.replace('attn1.to_q', 'attn2.processor.to_out')}_lora",
            QUERY.replace("attn1.to_q", "attn2.to_out.0"),
        ),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora", TEXT_QUERY),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora", TEXT_QUERY.replace("q_proj", "out_proj")),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer", TEXT_QUERY),
    ],
)
def test_old_names_of_diffusers(name: str, module: str, targets: list[LoraTarget]) -> None:
    target = next(each for each in targets if each.module == module)
    down, up = halves(target)
    (layer,) = read_lora({f"{name}.down.weight": down, f"{name}.up.weight": up}, targets)
    assert layer.module == module


@pytest.mark.parametrize("prefix", ["base_model.model.unet.", "base_model.model.", "unet.", ""])
def test_names_of_peft(prefix: str, targets: list[LoraTarget]) -> None:
    target = next(each for each in targets if each.module == QUERY)
    down, up = halves(target)
    tensors = {f"{prefix}{QUERY}.lora_A.weight": down, f"{prefix}{QUERY}.lora_B.default.weight": up}
    (layer,) = read_lora(tensors, targets, {f"unet.{QUERY}": 8.0})
    assert (layer.module, layer.alpha, layer.scale) == (QUERY, 8.0, 4.0)
    torch.testing.assert_close(layer.delta(), 4 * up @ down)


def test_text_encoder_without_its_prefix(targets: list[LoraTarget]) -> None:
    """transformers 5 names the modules of the first encoder without `text_model.`."""
    down, up = halves(next(each for each in targets if each.module == TEXT_QUERY))
    name = f"text_encoder.{TEXT_QUERY.removeprefix('text_model.')}"
    (layer,) = read_lora({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, targets)
    assert layer.module == TEXT_QUERY


def test_diffusers_reads_the_same_modules_in_files_of_kohya(targets: list[LoraTarget]) -> None:
    """The adapters that kohya's trainer makes for SDXL: attention, with the original names."""
    attention = [each for each in targets if "attentions" in each.module and ".to_" in each.module]
    tensors: dict[str, Tensor] = {}
    for target in attention:
        tensors |= kohya_with_original_names(target, *halves(target))
    ours = read_lora(tensors, targets)
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), SimpleNamespace(layers_per_block=2))
    theirs, _alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    again = {layer.module: layer for layer in read_lora(theirs, targets)}
    assert again.keys() == {layer.module for layer in ours} == {target.module for target in attention}
    assert all(torch.equal(again[layer.module].down, layer.down) for layer in ours)


@pytest.mark.parametrize("name", ["sd 1", "sd 2.1 base", "sdxl base", "sdxl refiner"])
def test_diffusers_translates_the_original_names_back(name: str) -> None:
    """A checkpoint with the original names of every tensor has diffusers' names after its conversion."""
    config = TextUNetConfig.from_dict(PUBLISHED[name])
    with torch.device("meta"):
        tensors = TextUNet(config).state_dict()
    original: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, kind = key.rpartition(".")
        original[f"model.diffusion_model.{original_module_name(module, config)}.{kind}"] = tensor
    raw = {**config.to_dict(), "class_embed_type": None}
    translated = convert_ldm_unet_checkpoint(original, raw)
    assert {key: value.shape for key, value in translated.items()} == {key: t.shape for key, t in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "the file holds no tensors"),
        ({"unet.conv_in.weight": (4, 4)}, "tensor 'unet.conv_in.weight' is not that of a low-rank adapter"),
        ({"unet.nowhere.lora_A.weight": (2, 4)}, "is for a module that this model's unet does not have"),
        ({"lora_unet_nowhere.lora_down.weight": (2, 4)}, "is for a module that this model's unet does not have"),
        ({"lora_te2_nowhere.alpha": ()}, "is for a module that this model's text_encoder_2 does not have"),
        ({f"{QUERY}.lora_A.weight": (2, 40)}, f"the adapter of unet.{QUERY} has no up tensor"),
        (
            {f"{QUERY}.lora_A.weight": (2, 48), f"{QUERY}.lora_B.weight": (40, 2)},
            f"the down tensor of unet.{QUERY} is (2, 48), not (2, 40): the weight is (40, 40)",
        ),
        (
            {f"{QUERY}.lora_A.weight": (2, 40), f"{QUERY}.lora_B.weight": (40, 3)},
            f"the up tensor of unet.{QUERY} is (40, 3), not (40, 2): the weight is (40, 40)",
        ),
        (
            {f"{QUERY}.lora_A.weight": (2, 40), f"unet.{QUERY}.lora_A.weight": (2, 40)},
            f"tensor 'unet.{QUERY}.lora_A.weight' is a second down of unet.{QUERY}",
        ),
        ({f"{QUERY}.lora_magnitude_vector": (40,)}, "belongs to an adapter of another kind (DoRA)"),
        ({"lora_unet_mid_block.hada_w1_a": (2, 2)}, "belongs to an adapter of another kind (LoHa)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    tensors: dict[str, tuple[int, ...]], message: str, targets: list[LoraTarget]
) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read_lora({name: torch.ones(shape) for name, shape in tensors.items()}, targets)
    assert message in str(refusal.value)


def test_an_alpha_that_is_no_number_is_refused(targets: list[LoraTarget]) -> None:
    target = next(each for each in targets if each.module == QUERY)
    tensors = kohya(target, *halves(target))
    tensors[next(name for name in tensors if name.endswith("alpha"))] = torch.tensor(float("nan"))
    with pytest.raises(CheckpointError, match=r"alpha of unet.* is nan, not a finite number"):
        read_lora(tensors, targets)
