"""The U-Net of a single file: its config from names and shapes, and where its tensors are.

Sources: `openaimodel.UNetModel` of CompVis's latent-diffusion and of Stability AI's generative-models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from denoised.model.checkpoints.original_names import original_module_name
from denoised.model.checkpoints.text_to_image.text_checks import OTHER_INPUTS
from denoised.model.conversion.single_file import UNET, Family, SingleFile
from denoised.model.conversion.tensor_source import Sources, TensorSource
from denoised.model.errors import CheckpointError
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

# diffusers' pipeline by whether the model is XL, and by the U-Net's input channels: 4 latents, and next to them a
# picture, or a mask and a picture.
PIPELINES = {
    (False, 4): "StableDiffusionPipeline",
    (False, 8): "StableDiffusionInstructPix2PixPipeline",
    (False, 9): "StableDiffusionInpaintPipeline",
    (True, 4): "StableDiffusionXLPipeline",
    (True, 9): "StableDiffusionXLInpaintPipeline",
}
HEADS = 8  # of each attention, in Stable Diffusion 1
HEAD_CHANNELS = 64  # of each head, in 2 and XL
SIZE_FEATURES = 256  # sinusoids of each of SDXL's six sizes


@dataclass
class ResolutionLevel:
    """One resolution: channels, residual blocks, and transformer layers of each of its attentions."""

    channels: int
    layers: int
    depth: int


def read_unet_shapes(file: SingleFile, latents: int) -> TextUNetConfig:
    """The config of the U-Net.

    latents: along each side of the pictures that it was trained on.

    Raises:
        CheckpointError: for a network of another architecture, and for one with inputs that are not served.
    """
    inputs = file.shape(f"{UNET}input_blocks.0.0.weight")[1]
    if (file.family is Family.SDXL, inputs) not in PIPELINES:
        content = OTHER_INPUTS.get(inputs, f"{inputs} channels")
        raise CheckpointError(f"{file.path}: the U-Net takes {content}, which is not converted")
    levels, middle = _read_levels(file), _depth(file, "middle_block.1")
    attending = next((k for k, level in enumerate(levels) if level.depth), None)
    if attending is None or not middle:
        raise CheckpointError(f"{file.path}: the U-Net does not attend to a text")
    first = f"{UNET}{_first_attention(file)}"
    config = {
        "sample_size": latents,
        "in_channels": inputs,
        "out_channels": file.shape(f"{UNET}out.2.weight")[0],
        "block_out_channels": [level.channels for level in levels],
        "layers_per_block": levels[0].layers,
        "down_block_types": [_block(level, "Down") for level in levels],
        "up_block_types": [_block(level, "Up") for level in reversed(levels)],
        "transformer_layers_per_block": _depths(levels, middle),
        "cross_attention_dim": file.shape(f"{first}.transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(file.shape(f"{first}.proj_in.weight")) == 2,
        "attention_head_dim": _heads(file.family, levels),
        "upcast_attention": file.family is Family.SD2,
        **_added_embedding(file),
    }
    try:
        return TextUNetConfig.from_dict(config)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: the U-Net is unlike any of {file.family}: {error}") from error


def unet_sources(names: Iterable[str], config: TextUNetConfig) -> Sources:
    """The origin of each tensor of the U-Net's state dict."""
    sources = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        original = original_module_name(module, config)
        assert original is not None, f"{module} has no original name"
        sources[name] = TensorSource(f"{UNET}{original}.{kind}")
    return sources


def _read_levels(file: SingleFile) -> list[ResolutionLevel]:
    """The levels on the way down: input block 0 is a convolution, and a downsampler ends each level but the last."""
    levels = [ResolutionLevel(0, 0, 0)]
    index = 1
    while True:
        block = f"input_blocks.{index}"
        if file.has(f"{UNET}{block}.0.op.weight"):
            levels.append(ResolutionLevel(0, 0, 0))
        elif file.has(name := f"{UNET}{block}.0.in_layers.2.weight"):
            levels[-1].channels = file.shape(name)[0]
            levels[-1].layers += 1
            levels[-1].depth = _depth(file, f"{block}.1")
        else:
            return levels
        index += 1


def _depth(file: SingleFile, attention: str) -> int:
    """The transformer layers of an attention; 0 if there is none."""
    return file.count(f"{UNET}{attention}.transformer_blocks.", ".norm1.weight")


def _first_attention(file: SingleFile) -> str:
    index = 1
    while not _depth(file, f"input_blocks.{index}.1"):
        index += 1
    return f"input_blocks.{index}.1"


def _depths(levels: list[ResolutionLevel], middle: int) -> int | list[int]:
    """diffusers' `transformer_layers_per_block`: the last one is also that of the middle block."""
    depths = [level.depth or 1 for level in levels[:-1]] + [middle]
    return depths[0] if len(set(depths)) == 1 else depths


def _block(level: ResolutionLevel, way: str) -> str:
    return f"CrossAttn{way}Block2D" if level.depth else f"{way}Block2D"


def _heads(family: Family, levels: list[ResolutionLevel]) -> int | list[int]:
    """diffusers' `attention_head_dim`, which is the number of heads."""
    if family is Family.SD1:
        return HEADS
    return [max(1, level.channels // HEAD_CHANNELS) for level in levels]


def _added_embedding(file: SingleFile) -> dict[str, Any]:
    if file.family is not Family.SDXL:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_FEATURES,
        "projection_class_embeddings_input_dim": file.shape(f"{UNET}label_emb.0.0.weight")[1],
    }
