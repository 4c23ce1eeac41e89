"""Whether a ControlNet was made for a model."""

from __future__ import annotations

from denoised.model.checkpoints.control.control_files import ControlFolder
from denoised.model.errors import CheckpointError, abbreviate
from denoised.model.networks.config_checks import to_lists
from denoised.model.networks.text_unet.text_unet_config import TextUNetConfig

# Keys whose values are equal in a U-Net and a ControlNet for it: they give the shapes of residuals and of inputs.
SHARED = (
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


def check_base(control: ControlFolder, unet: TextUNetConfig, channels: int, downscale: int) -> None:
    """Check that the residuals of a ControlNet fit into a U-Net.

    channels: of the latents; downscale: pixels along each side for one latent.

    Raises:
        CheckpointError: naming the folder, the key and both values.
    """
    config = control.config
    pairs = {key: (getattr(config.unet, key), getattr(unet, key)) for key in SHARED}
    pairs["in_channels"] = (config.unet.in_channels, channels)
    pairs["pixels along a latent, by conditioning_embedding_out_channels"] = (config.downscale, downscale)
    for key, (own, other) in pairs.items():
        if own != other:
            raise CheckpointError(
                f"{control.path}: this ControlNet is for another model: its {key} = {abbreviate(to_lists(own))}, "
                f"the model's is {abbreviate(to_lists(other))}"
            )
    if unet.class_embed_type is not None or unet.num_class_embeds is not None:
        raise CheckpointError(f"{control.path}: the model takes class labels, which ControlNets do not")
