"""Batches of one size, as texts are encoded and pictures decoded on a CUDA device; here with a CPU's kernels.

PyTorch's kernels for a CPU give a row the same bits at every place of these small batches, which is checked first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.model.backends.fixed_batch import check_fixed_batch, fill
from denoised.model.backends.text_encoder_selection import EncoderSelection, select_text_encoder
from denoised.model.checkpoints.text_to_image.text_pipeline import read_text_pipeline
from denoised.model.errors import KernelError
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.text_encoder.text_encoder import TextEncoder
from denoised.model.serving.conditioning import ConditioningRequest
from denoised.model.serving.latent_pictures import FIXED_BATCH, LatentPictures, published_rgb
from denoised.model.serving.prompt_encoder import ChunkEncoder, PromptEncoder
from tests.text_pipelines import PROMPT, save_pipeline


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_is_filled_with_its_last_row(count: int) -> None:
    rows = torch.arange(count * 3.0).view(count, 3)
    filled = fill(rows, 5)
    assert torch.equal(filled[:count], rows)
    assert (filled[count:] == rows[-1]).all()
    assert len(filled) == 5


def test_rows_that_depend_on_their_place_or_their_neighbors_are_refused() -> None:
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    check_fixed_batch("text encoder", torch.sin, rows)
    place = torch.arange(8.0)[:, None] * 1e-7
    for evaluate in (lambda x: x + place, lambda x: x + 1e-3 * x.mean(dim=0)):
        with pytest.raises(KernelError, match=r"^the bits of the text encoder depend on the other rows of a batch"):
            check_fixed_batch("text encoder", evaluate, rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-sd"
    save_pipeline(folder)
    return folder


class Recorded:
    """The number of rows in each evaluation of a network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: Any, method: str) -> None:
        self.sizes: list[int] = []
        own = getattr(kind, method)

        def counted(network: Any, rows: Tensor, **options: Any) -> Any:
            self.sizes.append(len(rows))
            return own(network, rows, **options)

        monkeypatch.setattr(kind, method, counted)


def prompts_of(folder: Path, batch: int) -> PromptEncoder:
    pipeline = read_text_pipeline(folder)
    encoder = pipeline.text_encoders[0].eval().requires_grad_(False)
    selection = EncoderSelection(encoder, f"batches-of-{batch}", batch, filled=True)
    return PromptEncoder([ChunkEncoder(pipeline.tokenizers[0], selection)])


def test_every_evaluation_of_a_text_encoder_has_the_same_number_of_sequences(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(monkeypatch, TextEncoder, "forward")
    requests = [ConditioningRequest(prompt=f"{PROMPT} {k}") for k in range(11)]
    together, alone = prompts_of(folder, 8), prompts_of(folder, 8)
    context, pooled = together.encode(requests)
    assert recorded.sizes == [8, 8]
    assert together.kernels == "batches-of-8"
    for k, request in enumerate(requests):
        own = alone.encode([request])
        assert torch.equal(own[0][0], context[k])
        assert torch.equal(own[1][0], pooled[k])
    assert set(recorded.sizes) == {8}


class OnCuda:
    """Has a CPU's tensors say that they are on a CUDA device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        monkeypatch.setattr("denoised.model.backends.packed_text_encoder.can_pack", lambda device: False)
        monkeypatch.setattr("denoised.model.backends.packed_decoder.can_pack", lambda device: False)


def test_a_cuda_device_encodes_and_decodes_in_batches_of_one_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoised.model.serving.loading import load_text_model

    OnCuda(monkeypatch)
    model = load_text_model(folder)
    assert model.card.numerics.split("/")[0].split("+")[1:] == ["batches-of-8", "batches-of-8"]
    encoded, decoded = Recorded(monkeypatch, TextEncoder, "forward"), Recorded(monkeypatch, Autoencoder, "decode")
    model.encode([ConditioningRequest(prompt=text) for text in ("a fox", "a dog", "a house")])
    assert model.decode_limit(model.shape) == FIXED_BATCH
    latents = torch.randn(11, *model.shape, generator=torch.Generator().manual_seed(0))
    pictures = model.decode(latents)
    assert encoded.sizes == [8]
    assert decoded.sizes == [8, 8]
    for k in range(11):
        assert (model.decode(latents[k : k + 1])[0] == pictures[k]).all()


def test_where_a_row_depends_on_its_place_each_is_evaluated_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoised.model.serving.loading import load_text_model

    def refuse(name: str, evaluate: Any, rows: Tensor) -> None:
        raise KernelError(name)

    OnCuda(monkeypatch)
    for module in ("text_encoder_selection", "packed_decoder"):
        monkeypatch.setattr(f"denoised.model.backends.{module}.check_fixed_batch", refuse)
    assert load_text_model(folder).card.numerics.split("/")[0].split("+")[1:] == ["per-image", "per-image"]


def test_pictures_that_occupy_the_device_by_themselves_are_decoded_one_by_one(folder: Path) -> None:
    autoencoder = read_text_pipeline(folder).autoencoder.eval()
    pictures = LatentPictures(autoencoder, published_rgb(is_xl=False), in_fixed_batches=True)
    assert [pictures.limit(side, side) for side in (8, 64, 1024)] == [8, 8, 1]
    assert pictures.kernels == "batches-of-8"


def test_a_text_encoder_in_half_precision_is_compared_with_itself_in_float32(folder: Path) -> None:
    encoder = read_text_pipeline(folder).text_encoders[0].eval().requires_grad_(False)
    half = select_text_encoder(encoder, "bfloat16")
    assert half.refused is None
    assert (half.kernels, half.batch, half.filled) == ("per-image", 1, False)
    spoiled = read_text_pipeline(folder).text_encoders[0].eval().requires_grad_(False)
    spoiled.text_model.embeddings.token_embedding.weight.mul_(1e6)
    refused = select_text_encoder(spoiled, "float16")
    assert refused.refused is not None
    assert refused.refused.startswith("in float16, its text encoder is off by ")
    assert refused.packed
