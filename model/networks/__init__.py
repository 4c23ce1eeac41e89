"""The networks: U-Nets, the text encoder and the autoencoder, with the names of diffusers and transformers.

`unet` and `text_encoder` stand alone; `text_unet` and `autoencoder` build on the layers of `unet`. This folder itself
holds what they share: checks of configs (`config_checks`) and adapters of a layer (`low_rank`).
"""
