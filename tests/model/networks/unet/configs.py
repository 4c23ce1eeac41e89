"""Small network configs with blocks of every kind, for the tests of the backends that evaluate them."""

from __future__ import annotations

from dataclasses import replace

from denoised.model.networks.unet.unet_config import UNetConfig

ATTENTION = UNetConfig(
    sample_size=16,
    in_channels=3,
    out_channels=3,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=16,
    num_class_embeds=4,
)
RESNETS = replace(
    ATTENTION,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    class_embed_type="timestep",
)
NCSNPP = replace(
    ATTENTION,
    block_out_channels=(32, 32),
    down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    time_embedding_type="fourier",
    norm_num_groups=None,
    attention_head_dim=None,
)
