"""The text encoders of a single file: OpenAI's CLIP with transformers' names, and OpenCLIP with its own.

Source: `open_clip.transformer.TextTransformer`, whose attentions have one projection for queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from denoised.model.conversion.single_file import (
    CLIP_ALONE,
    FIRST_OF_TWO,
    OPEN_CLIP_ALONE,
    SECOND_OF_TWO,
    Family,
    SingleFile,
)
from denoised.model.conversion.tensor_source import Sources, TensorSource
from denoised.model.errors import CheckpointError
from denoised.model.networks.text_encoder.text_encoder_config import LEGACY_EOS_TOKEN_ID, TextEncoderConfig

HEAD_CHANNELS = 64
OPEN_CLIP_LAYERS = 24  # of the encoder of Stable Diffusion 2, which reads the hidden states before the last one
OPEN_CLIP_MODULES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_OUTER = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class OriginalTextEncoder:
    """One text encoder of a file.

    Attributes:
        folder: the part of the pipeline that it becomes.
        prefix: of its names in the file.
        config: of the encoder.
        open_clip: whether its names are OpenCLIP's; its tokenizer then pads with "!".
        projected: whether its pooled vector is projected.
    """

    folder: str
    prefix: str
    config: TextEncoderConfig
    open_clip: bool
    projected: bool

    def sources(self, names: Iterable[str]) -> Sources:
        """The origin of each tensor of the encoder's state dict."""
        if not self.open_clip:
            return {name: TensorSource(self.prefix + name.removeprefix("text_model.")) for name in names}
        return {name: _open_clip_source(self.prefix, name) for name in names}


def read_text_encoders(file: SingleFile) -> list[OriginalTextEncoder]:
    """The text encoders of a file, in the order of the pipeline.

    Raises:
        CheckpointError: for an encoder of another architecture.
    """
    if file.family is Family.SD1:
        return [_read_clip(file, "text_encoder", CLIP_ALONE)]
    if file.family is Family.SD2:
        return [_read_open_clip(file, "text_encoder", OPEN_CLIP_ALONE, projected=False)]
    return [
        _read_clip(file, "text_encoder", FIRST_OF_TWO),
        _read_open_clip(file, "text_encoder_2", SECOND_OF_TWO, projected=True),
    ]


def _read_clip(file: SingleFile, folder: str, prefix: str) -> OriginalTextEncoder:
    # Files of early fine-tuning programs lack `text_model.`.
    full = f"{prefix}text_model." if file.has(f"{prefix}text_model.") else prefix
    vocabulary, width = _matrix(file, f"{full}embeddings.token_embedding.weight")
    config = TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_matrix(file, f"{full}encoder.layers.0.mlp.fc1.weight")[0],
        projection_dim=width,
        num_hidden_layers=file.count(f"{full}encoder.layers.", ".mlp.fc1.weight"),
        num_attention_heads=width // HEAD_CHANNELS,
        max_position_embeddings=_matrix(file, f"{full}embeddings.position_embedding.weight")[0],
        hidden_act="quick_gelu",
        eos_token_id=LEGACY_EOS_TOKEN_ID,
    )
    return OriginalTextEncoder(folder, full, _checked(file, config), open_clip=False, projected=False)


def _read_open_clip(file: SingleFile, folder: str, prefix: str, *, projected: bool) -> OriginalTextEncoder:
    vocabulary, width = _matrix(file, f"{prefix}token_embedding.weight")
    layers = file.count(f"{prefix}transformer.resblocks.", ".mlp.c_fc.weight")
    if not projected and layers != OPEN_CLIP_LAYERS - 1:  # some files leave out the last layer, which is not read
        layers -= 1
    config = TextEncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_matrix(file, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0],
        projection_dim=_matrix(file, f"{prefix}text_projection")[1] if projected else 512,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_CHANNELS,
        max_position_embeddings=_matrix(file, f"{prefix}positional_embedding")[0],
        hidden_act="gelu",
        eos_token_id=LEGACY_EOS_TOKEN_ID,
    )
    return OriginalTextEncoder(folder, prefix, _checked(file, config), open_clip=True, projected=projected)


def _open_clip_source(prefix: str, name: str) -> TensorSource:
    if name in OPEN_CLIP_OUTER:
        return TensorSource(prefix + OPEN_CLIP_OUTER[name])
    if name == "text_projection.weight":
        return TensorSource(f"{prefix}text_projection", transposed=True)
    match = LAYER.fullmatch(name)
    assert match is not None, f"{name} is not a tensor of a text encoder"
    layer, module, kind = match.groups()
    block = f"{prefix}transformer.resblocks.{layer}"
    if module in OPEN_CLIP_MODULES:
        return TensorSource(f"{block}.{OPEN_CLIP_MODULES[module]}.{kind}")
    part = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(module)
    return TensorSource(f"{block}.attn.in_proj_{kind}", part=part)


def _matrix(file: SingleFile, name: str) -> tuple[int, int]:
    shape = file.shape(name)
    if len(shape) != 2:
        raise CheckpointError(f"{file.path}: {name!r} has shape {shape}, not that of a matrix")
    return shape[0], shape[1]


def _checked(file: SingleFile, config: TextEncoderConfig) -> TextEncoderConfig:
    try:
        return TextEncoderConfig.from_dict(config.to_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: the text encoder is unlike any of {file.family}: {error}") from error
