"""Names and shapes of single-file checkpoints, written down from the constructors of the original code.

`unet` follows `openaimodel.UNetModel`, `autoencoder` the `Encoder` and `Decoder` of latent-diffusion, `open_clip`
OpenCLIP's text tower. They know nothing of diffusers' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class OriginalModel:
    """The arguments of the original constructors.

    channels, mult, res_blocks: of the U-Net; depth: transformer layers at each level, 0 for none; context: channels of
    the text; linear: linear projections in the transformers; added: channels of the vector next to the time, for SDXL.
    vae: channels, multipliers and residual blocks of the autoencoder.
    clip, open_clip: (width, layers, vocabulary) of the text encoders; None: the model has none.
    projected: whether OpenCLIP's is the second of two.
    """

    channels: int
    mult: Sequence[int]
    res_blocks: int
    depth: Sequence[int]
    context: int
    linear: bool
    vae: tuple[int, Sequence[int], int]
    clip: tuple[int, int, int] | None = None
    open_clip: tuple[int, int, int] | None = None
    added: int | None = None
    inputs: int = 4

    def shapes(self) -> Shapes:
        """Every tensor of a file as people download it, training's leftovers included."""
        found = {f"model.diffusion_model.{name}": shape for name, shape in self.unet().items()}
        found |= {f"first_stage_model.{name}": shape for name, shape in autoencoder(*self.vae).items()}
        if self.clip is not None and self.open_clip is not None:
            found |= prefixed("conditioner.embedders.0.transformer.text_model.", clip(*self.clip))
            found |= prefixed("conditioner.embedders.1.model.", open_clip(*self.open_clip))
        elif self.clip is not None:
            found |= prefixed("cond_stage_model.transformer.text_model.", clip(*self.clip))
        elif self.open_clip is not None:
            found |= prefixed("cond_stage_model.model.", open_clip(*self.open_clip))
        return found | {"betas": (1000,), "alphas_cumprod": (1000,), "model_ema.decay": ()}

    def unet(self) -> Shapes:
        width, embed = self.channels, 4 * self.channels
        found = dense("time_embed.0", width, embed) | dense("time_embed.2", embed, embed)
        if self.added is not None:
            found |= dense("label_emb.0.0", self.added, embed) | dense("label_emb.0.2", embed, embed)
        found |= convolution("input_blocks.0.0", self.inputs, width)
        skips, current, index = [width], width, 1
        for level, multiplier in enumerate(self.mult):
            for _ in range(self.res_blocks):
                found |= residual(f"input_blocks.{index}.0", current, multiplier * width, embed)
                current = multiplier * width
                found |= self.transformer(f"input_blocks.{index}.1", current, self.depth[level])
                skips.append(current)
                index += 1
            if level < len(self.mult) - 1:
                found |= convolution(f"input_blocks.{index}.0.op", current, current)
                skips.append(current)
                index += 1
        found |= residual("middle_block.0", current, current, embed)
        found |= self.transformer("middle_block.1", current, max(self.depth[-1], self.middle_depth))
        found |= residual("middle_block.2", current, current, embed)
        index = 0
        for level in reversed(range(len(self.mult))):
            for block in range(self.res_blocks + 1):
                found |= residual(f"output_blocks.{index}.0", current + skips.pop(), self.mult[level] * width, embed)
                current = self.mult[level] * width
                found |= self.transformer(f"output_blocks.{index}.1", current, self.depth[level])
                if level and block == self.res_blocks:
                    place = 2 if self.depth[level] else 1
                    found |= convolution(f"output_blocks.{index}.{place}.conv", current, current)
                index += 1
        return found | norm("out.0", current) | convolution("out.2", current, 4)

    @property
    def middle_depth(self) -> int:
        return self.depth[-1] or 1

    def transformer(self, name: str, width: int, depth: int) -> Shapes:
        if not depth:
            return {}
        project = dense if self.linear else pointwise
        found = norm(f"{name}.norm", width) | project(f"{name}.proj_in", width, width)
        for layer in range(depth):
            block = f"{name}.transformer_blocks.{layer}"
            for number, source in ((1, width), (2, self.context)):
                attention = f"{block}.attn{number}"
                found |= {f"{attention}.to_q.weight": (width, width), f"{attention}.to_k.weight": (width, source)}
                found |= {f"{attention}.to_v.weight": (width, source)} | dense(f"{attention}.to_out.0", width, width)
            found |= dense(f"{block}.ff.net.0.proj", width, 8 * width) | dense(f"{block}.ff.net.2", 4 * width, width)
            for number in (1, 2, 3):
                found |= norm(f"{block}.norm{number}", width)
        return found | project(f"{name}.proj_out", width, width)


def dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def convolution(name: str, inputs: int, outputs: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def pointwise(name: str, inputs: int, outputs: int) -> Shapes:
    return convolution(name, inputs, outputs, 1)


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def residual(name: str, inputs: int, outputs: int, embed: int) -> Shapes:
    found = norm(f"{name}.in_layers.0", inputs) | convolution(f"{name}.in_layers.2", inputs, outputs)
    found |= dense(f"{name}.emb_layers.1", embed, outputs)
    found |= norm(f"{name}.out_layers.0", outputs) | convolution(f"{name}.out_layers.3", outputs, outputs)
    return found | (pointwise(f"{name}.skip_connection", inputs, outputs) if inputs != outputs else {})


def plain_residual(name: str, inputs: int, outputs: int) -> Shapes:
    found = norm(f"{name}.norm1", inputs) | convolution(f"{name}.conv1", inputs, outputs)
    found |= norm(f"{name}.norm2", outputs) | convolution(f"{name}.conv2", outputs, outputs)
    return found | (pointwise(f"{name}.nin_shortcut", inputs, outputs) if inputs != outputs else {})


def middle(name: str, channels: int) -> Shapes:
    found = plain_residual(f"{name}.mid.block_1", channels, channels)
    found |= norm(f"{name}.mid.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        found |= pointwise(f"{name}.mid.attn_1.{part}", channels, channels)
    return found | plain_residual(f"{name}.mid.block_2", channels, channels)


def autoencoder(channels: int, mult: Sequence[int], res_blocks: int, latents: int = 4) -> Shapes:
    current = channels
    found = convolution("encoder.conv_in", 3, channels)
    for level, multiplier in enumerate(mult):
        for block in range(res_blocks):
            found |= plain_residual(f"encoder.down.{level}.block.{block}", current, multiplier * channels)
            current = multiplier * channels
        if level < len(mult) - 1:
            found |= convolution(f"encoder.down.{level}.downsample.conv", current, current)
    found |= middle("encoder", current) | norm("encoder.norm_out", current)
    found |= convolution("encoder.conv_out", current, 2 * latents)
    found |= convolution("decoder.conv_in", latents, current) | middle("decoder", current)
    for level in reversed(range(len(mult))):
        for block in range(res_blocks + 1):
            found |= plain_residual(f"decoder.up.{level}.block.{block}", current, mult[level] * channels)
            current = mult[level] * channels
        if level:
            found |= convolution(f"decoder.up.{level}.upsample.conv", current, current)
    found |= norm("decoder.norm_out", current) | convolution("decoder.conv_out", current, 3)
    return found | pointwise("quant_conv", 2 * latents, 2 * latents) | pointwise("post_quant_conv", latents, latents)


def clip(width: int, layers: int, vocabulary: int) -> Shapes:
    found: Shapes = {
        "embeddings.token_embedding.weight": (vocabulary, width),
        "embeddings.position_embedding.weight": (77, width),
        "embeddings.position_ids": (1, 77),
    }
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= dense(f"{name}.self_attn.{part}", width, width)
        found |= dense(f"{name}.mlp.fc1", width, 4 * width) | dense(f"{name}.mlp.fc2", 4 * width, width)
        found |= norm(f"{name}.layer_norm1", width) | norm(f"{name}.layer_norm2", width)
    return found | norm("final_layer_norm", width)


def open_clip(width: int, layers: int, vocabulary: int) -> Shapes:
    found: Shapes = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (vocabulary, width),
        "text_projection": (width, width),
        "logit_scale": (),
    }
    for layer in range(layers):
        name = f"transformer.resblocks.{layer}"
        found |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
        found |= dense(f"{name}.attn.out_proj", width, width)
        found |= dense(f"{name}.mlp.c_fc", width, 4 * width) | dense(f"{name}.mlp.c_proj", 4 * width, width)
        found |= norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
    return found | norm("ln_final", width)


def prefixed(prefix: str, shapes: Mapping[str, Shape]) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


# The published models.
SD1 = OriginalModel(320, (1, 2, 4, 4), 2, (1, 1, 1, 0), 768, False, (128, (1, 2, 4, 4), 2), clip=(768, 12, 49408))
SD2 = OriginalModel(320, (1, 2, 4, 4), 2, (1, 1, 1, 0), 1024, True, (128, (1, 2, 4, 4), 2), open_clip=(1024, 24, 49408))
SDXL = OriginalModel(
    320,
    (1, 2, 4),
    2,
    (0, 2, 10),
    2048,
    True,
    (128, (1, 2, 4, 4), 2),
    clip=(768, 12, 49408),
    open_clip=(1280, 32, 49408),
    added=2816,
)


def shrunken(model: OriginalModel, vocabulary: int) -> OriginalModel:
    """The same architecture with few channels, layers and token ids."""
    both = model.clip is not None and model.open_clip is not None
    return OriginalModel(
        64,
        (1, 2) if model.added is None else (1, 2, 2),
        1,
        (1, 0) if model.added is None else (0, 1, 2),
        192 if both else 64,
        model.linear,
        (32, (1, 2), 1),
        clip=(64, 2, vocabulary) if model.clip else None,
        open_clip=(128 if both else 64, 3, vocabulary) if model.open_clip else None,
        added=None if model.added is None else 128 + 6 * 256,
    )


def random_tensors(shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, Tensor]:
    """Random weights, and whole numbers for position ids."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.arange(shape[-1])[None]
        if "position_ids" in name
        else torch.randn(shape, generator=generator) * 0.05
        for name, shape in shapes.items()
    }


def write_checkpoint(path: Path, model: OriginalModel, **more: Any) -> dict[str, Tensor]:
    """Write a file of random weights; returns them."""
    metadata = more.pop("metadata", None)
    tensors = random_tensors(model.shapes()) | more
    save_file(tensors, path, metadata=metadata)
    return tensors
