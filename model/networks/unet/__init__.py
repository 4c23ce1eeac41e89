"""The U-Net with or without classes (`UNet2DModel`), NCSN++ included: config, blocks, layers, embeddings."""
