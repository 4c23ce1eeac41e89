"""The autoencoder between pixels and latents (`AutoencoderKL`): config, blocks, evaluation in tiles."""
