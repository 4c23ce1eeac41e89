"""CLIP's text encoder against transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from denoised.model.errors import CheckpointError
from denoised.model.networks.text_encoder.text_encoder import TextEncoder, text_encoder_tensors
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig

START, END = 48, 49
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "projection_dim": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "bos_token_id": START,
    "eos_token_id": END,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "quick gelu": SMALL,
    "gelu": {**SMALL, "hidden_act": "gelu"},
    "end token of old configs": {**SMALL, "eos_token_id": 2},
    "one layer": {**SMALL, "num_hidden_layers": 1},
    "another epsilon": {**SMALL, "layer_norm_eps": 0.1},
}
# The encoders of Stable Diffusion 1, of 2, and SDXL's second.
PUBLISHED: dict[str, dict[str, Any]] = {
    "clip-l": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768},
    "openclip-h": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "hidden_act": "gelu",
    },
    "openclip-g": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}


def tokens_of_three_prompts() -> Tensor:
    """Prompts of 3, 40 and 75 tokens; two are padded with the end token and one with zeros."""
    tokens = torch.full((3, 77), END)
    tokens[:, 0] = START
    draw = torch.Generator().manual_seed(3)
    for row, length in enumerate((3, 40, 75)):
        tokens[row, 1 : 1 + length] = torch.randint(3, 48, (length,), generator=draw)
    tokens[1, 42:] = 0
    return tokens


def theirs(raw: dict[str, Any], projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**raw)).eval()


@pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_give_the_output_of_transformers(
    name: str, projected: bool, stir: Callable[..., None]
) -> None:
    """Every hidden state, the last one after the norm, and the pooled vector, to 1e-5 in float32."""
    reference = theirs(CONFIGS[name], projected)
    stir(reference)
    encoder = TextEncoder(TextEncoderConfig.from_dict(CONFIGS[name]), projected=projected).eval()
    encoder.load_state_dict(text_encoder_tensors(reference.state_dict()))
    tokens = tokens_of_three_prompts()
    with torch.inference_mode():
        expected = reference(tokens, output_hidden_states=True)
        found = encoder(tokens)
        normalized = encoder.normalize(found.hidden_states[-1])
    pooled = expected.text_embeds if projected else expected.pooler_output
    torch.testing.assert_close(found.last, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.hidden_states, tuple(expected.hidden_states), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized, found.last, rtol=0, atol=0)


@pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])
def test_a_folder_written_by_transformers_loads(projected: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = theirs(SMALL, projected)
        reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = TextEncoderConfig.from_dict(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert config == TextEncoderConfig.from_dict(SMALL)
    TextEncoder(config, projected=projected).load_state_dict(text_encoder_tensors(tensors))


def test_names_of_older_files_are_translated() -> None:
    """Files of transformers 4 have the prefix, and the oldest ones the positions."""
    encoder = TextEncoder(TextEncoderConfig.from_dict(SMALL), projected=True)
    tensors = encoder.state_dict()
    assert {name.split(".")[0] for name in tensors} == {"text_model", "text_projection"}
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert text_encoder_tensors({**tensors, **positions}).keys() == tensors.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_tensors_of_transformers(name: str) -> None:
    with torch.device("meta"):
        reference = CLIPTextModelWithProjection(CLIPTextConfig(**PUBLISHED[name])).state_dict()
        ours = TextEncoder(TextEncoderConfig.from_dict(PUBLISHED[name]), projected=True).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in reference.items()}


def test_a_token_does_not_see_those_after_it(stir: Callable[..., None]) -> None:
    encoder = TextEncoder(TextEncoderConfig.from_dict(SMALL), projected=False).eval()
    stir(encoder)
    tokens = tokens_of_three_prompts()
    changed = tokens.clone()
    changed[:, 30:] = 7
    with torch.inference_mode():
        before, after = encoder(tokens).last, encoder(changed).last
    torch.testing.assert_close(before[:, :30], after[:, :30], rtol=0, atol=1e-6)
    assert (before[:, 30:] - after[:, 30:]).abs().max() > 1e-2


def test_the_pooled_vector_is_that_of_the_first_end_token() -> None:
    encoder = TextEncoder(TextEncoderConfig.from_dict(SMALL), projected=False)
    assert encoder.end_positions(tokens_of_three_prompts()).tolist() == [4, 41, 76]
    legacy = TextEncoder(TextEncoderConfig.from_dict({**SMALL, "eos_token_id": 2}), projected=False)
    assert legacy.end_positions(tokens_of_three_prompts()).tolist() == [4, 41, 76]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alibi": True}, "config key 'alibi' is not understood"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported (supported: 'quick_gelu', 'gelu')"),
        ({"model_type": "t5"}, "model_type = 't5' is not supported"),
        ({"use_attention_mask": True}, "use_attention_mask = True is not supported"),
        ({"num_attention_heads": 3}, "hidden_size = 16 is not a multiple of num_attention_heads = 3"),
        ({"eos_token_id": 50}, "eos_token_id = 50 is outside the vocabulary (vocab_size = 50)"),
        ({"eos_token_id": [49]}, "eos_token_id = [49] is not a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 is not a whole number from 1"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        TextEncoderConfig.from_dict({**SMALL, **change})
    assert message in str(refusal.value)


def test_a_written_config_is_read_as_the_same() -> None:
    for raw in (*CONFIGS.values(), *PUBLISHED.values()):
        config = TextEncoderConfig.from_dict(raw)
        assert TextEncoderConfig.from_dict(config.to_dict()) == config
