"""The module names of Stable Diffusion's original code and those of diffusers, for the U-Net.

Checkpoints in a single file have the original names, and so have adapters that kohya's trainer makes for SDXL.
Source: the module tree of `openaimodel.UNetModel` in CompVis's latent-diffusion.
"""

from __future__ import annotations

from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

# Modules outside of the blocks: diffusers' name → the original one.
OUTER_MODULES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET_MODULES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# Indices in the middle block: with attention it is a residual block, a transformer and a residual block.
MIDDLE_MODULES = {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def original_module_name(module: str, config: TextUNetConfig) -> str | None:
    """The original name of a module, such as `input_blocks.1.1.proj_in` for `down_blocks.0.attentions.0.proj_in`.

    module: diffusers' name. None for a module that the original code does not have.
    """
    if module in OUTER_MODULES:
        return OUTER_MODULES[module]
    blocks = _down_blocks(config) | MIDDLE_MODULES | _up_blocks(config)
    for prefix, original in blocks.items():
        if module.startswith(f"{prefix}."):
            inner = module.removeprefix(f"{prefix}.")
            return f"{original}.{RESNET_MODULES.get(inner, inner) if '.resnets.' in prefix else inner}"
    return blocks.get(module)


def _down_blocks(config: TextUNetConfig) -> dict[str, str]:
    """Input block 0 is the first convolution; each residual block and each downsampler is one more."""
    names, index = {}, 1
    for level in range(config.levels):
        for layer in range(config.layers(level)):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{index}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{index}.1"
            index += 1
        if level < config.levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    return names


def _up_blocks(config: TextUNetConfig) -> dict[str, str]:
    """Each residual block is an output block; an upsampler comes last in that of its level's last residual block."""
    names, index = {}, 0
    for i, kind in enumerate(config.up_block_types):
        attends = kind == "CrossAttnUpBlock2D"
        for layer in range(config.layers(config.levels - 1 - i) + 1):
            names[f"up_blocks.{i}.resnets.{layer}"] = f"output_blocks.{index}.0"
            names[f"up_blocks.{i}.attentions.{layer}"] = f"output_blocks.{index}.1"
            index += 1
        names[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{index - 1}.{2 if attends else 1}"
    return names
