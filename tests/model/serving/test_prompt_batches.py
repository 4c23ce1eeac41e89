"""Text encoding: the prompts of several jobs in one evaluation, with the same states as alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoised.model.backends.packed import PackedLinear, can_pack
from denoised.model.backends.packed_text_encoder import pack_text_encoder
from denoised.model.backends.text_encoder_selection import MAX_BATCH
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.networks.text_encoder.text_encoder_config import TextEncoderConfig
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.loading import load_text_model
from tests.text_pipelines import build_pipeline, build_xl_pipeline, save_pipeline, stir

pytestmark = pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="PyTorch has no oneDNN here")

LONG = " ".join(["a photo of a small red house by the sea"] * 20)
REQUESTS = [
    ConditioningRequest(prompt="a photo of a horse"),
    ConditioningRequest(prompt="the quick brown fox", clip_skip=1),
    ConditioningRequest(prompt="a (red:1.4) house", emphasis=True),
    ConditioningRequest(prompt="a lazy dog", is_negative=True),
    ConditioningRequest(prompt=None, is_negative=True),
    ConditioningRequest(prompt="soft light, cinematic lighting"),
    ConditioningRequest(prompt="a photo of a horse"),
]


@pytest.fixture(scope="module", params=[build_pipeline, build_xl_pipeline])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / request.param.__name__
    save_pipeline(folder, build=request.param)
    return folder


class Evaluations:
    """The number of sequences in each evaluation of a text encoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        forward = TextEncoder.forward

        def counted(encoder: TextEncoder, tokens: torch.Tensor) -> Any:
            self.sizes.append(len(tokens))
            return forward(encoder, tokens)

        monkeypatch.setattr(TextEncoder, "forward", counted)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    return Evaluations(monkeypatch)


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[], Any]:
    return lambda: load_text_model(folder)


def test_prompts_of_several_jobs_are_one_evaluation_with_the_states_that_each_has_alone(
    load: Callable[[], Any], evaluations: Evaluations
) -> None:
    together, alone = load(), load()
    encoders = len(together._prompts._encoders)
    evaluations.sizes.clear()
    batch = together.encode(REQUESTS)
    assert evaluations.sizes == [6] * encoders, "equal prompts are one sequence"
    for k, request in enumerate(REQUESTS):
        own = alone.encode([request])
        for name, tensor in own.tensors.items():
            assert torch.equal(batch[name][k], tensor[0]), (k, name)


def test_prepared_prompts_are_found_in_the_cache_also_by_a_request_next_to_its_negative_prompt(
    load: Callable[[], Any], evaluations: Evaluations
) -> None:
    model, alone = load(), load()
    evaluations.sizes.clear()
    asked = ConditioningRequest(prompt=LONG, negative_prompt="a lazy dog")
    rows = [asked, asked.unconditional()]
    model.prepare([*REQUESTS, *rows])
    encoders = len(model._prompts._encoders)
    assert len(evaluations.sizes) == encoders, "one evaluation of each encoder"
    evaluations.sizes.clear()
    found = model.encode([REQUESTS[0], REQUESTS[3]])
    assert evaluations.sizes == []
    assert torch.equal(found["context"][0], alone.encode(REQUESTS[:1])["context"][0])
    assert torch.equal(model.encode(rows)["context"], alone.encode(rows)["context"])


def test_more_prompts_than_a_batch_holds_are_several_evaluations(
    load: Callable[[], Any], evaluations: Evaluations
) -> None:
    model = load()
    evaluations.sizes.clear()
    model.encode([ConditioningRequest(prompt=f"house {k}") for k in range(MAX_BATCH + 2)])
    assert sorted(set(evaluations.sizes)) == [2, MAX_BATCH]


@pytest.mark.parametrize(
    ("refused", "kernels"), [(None, "packed+packed"), ("encoder", "per-image+packed"), ("decoder", "packed+per-image")]
)
def test_numerics_name_the_kernels_of_text_encoders_and_decoder(
    refused: str | None, kernels: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of two machines with other kernels differ in their last bits."""
    for part in ("backends.text_encoder_selection.pack_text_encoder", "serving.loading.pack_decoder"):
        if refused is not None and part.endswith(refused):
            monkeypatch.setattr(f"denoised.model.{part}", lambda network: "the kernels differ")
    numerics = load_text_model(folder).card.numerics
    assert numerics.split("/")[0].partition("+")[2] == kernels


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("projected", [False, True])
def test_a_packed_encoder_computes_the_same_function_whatever_the_batch(activation: str, projected: bool) -> None:
    settings = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = TextEncoderConfig.from_dict(
        {**settings, "vocab_size": 99, "hidden_act": activation, "projection_dim": 20, "eos_token_id": 98}
    )
    encoder = TextEncoder(config, projected=projected).eval().requires_grad_(False)
    stir(encoder, 0)
    tokens = torch.randint(99, (5, 77), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = encoder(tokens)
        packed = pack_text_encoder(encoder)
        assert isinstance(packed, TextEncoder)
        assert isinstance(packed.text_model.encoder.layers[0].mlp.fc1, PackedLinear)
        together = packed(tokens)
        assert (together.last - expected.last).abs().max() < 1e-4
        for k in range(5):
            alone = packed(tokens[k : k + 1])
            assert torch.equal(alone.last[0], together.last[k])
            assert torch.equal(alone.pooled[0], together.pooled[k])
            pairs = zip(alone.hidden_states, together.hidden_states, strict=True)
            assert all(torch.equal(one[0], many[k]) for one, many in pairs)
