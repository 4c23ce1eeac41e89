"""The text-conditioned U-Net (`UNet2DConditionModel`): config, cross-attention blocks, transformer, embeddings."""
