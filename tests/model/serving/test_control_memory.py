"""How much of `--model-memory` the ControlNets of a model take."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from denoised.model.checkpoints.weight_count import weight_bytes
from denoised.model.errors import CheckpointError
from denoised.model.serving.control_library import MAX_LOADED
from denoised.model.serving.control_memory import control_bytes
from denoised.model.serving.loading import ZOO
from denoised.worker.model_loading import load_models, served_bytes
from tests.control_nets import save_control_net
from tests.text_pipelines import UNET, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers

WIDE = {**UNET, "cross_attention_dim": 48}  # for another model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and three ControlNets, of which one is for another model and one is no folder."""
    folder = tmp_path_factory.mktemp("controlled")
    save_pipeline(folder / "tiny-sd")
    save_control_net(folder / "nets/edges")
    save_control_net(folder / "nets/wide", unet=WIDE)
    (folder / "nets/old.safetensors").write_bytes(b"")
    return folder


def test_the_control_nets_that_fit_a_model_count_as_they_are_served(folder: Path) -> None:
    nets = folder / "nets"
    (edges, wide) = (weight_bytes(nets / name) for name in ("edges", "wide"))
    assert control_bytes(folder / "tiny-sd", nets) == edges != wide
    assert control_bytes(folder / "tiny-sd", nets, "bfloat16") == edges // 2
    assert control_bytes(ZOO / "digits", nets) == control_bytes(folder / "tiny-sd", None) == 0
    assert served_bytes(folder / "tiny-sd", "float32", nets) == weight_bytes(folder / "tiny-sd") + edges


def test_so_many_count_as_stay_in_memory(folder: Path, tmp_path: Path) -> None:
    for k in range(MAX_LOADED + 2):
        (tmp_path / f"edges-{k}").symlink_to(folder / "nets/edges", target_is_directory=True)
    assert control_bytes(folder / "tiny-sd", tmp_path) == MAX_LOADED * weight_bytes(folder / "nets/edges")


def test_a_model_whose_control_nets_do_not_fit_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoised.worker.model_loading.bundled", lambda: [ZOO / "digits"])
    budget = weight_bytes(ZOO / "digits") + weight_bytes(folder / "tiny-sd")
    options = {"device": "cpu", "max_images": 1, "budget": budget}
    with caplog.at_level(logging.ERROR):
        assert list(load_models([folder / "tiny-sd"], **options)) == ["digits", "tiny-sd"]  # type: ignore[arg-type]
        found = load_models([folder / "tiny-sd"], **options, controls=folder / "nets")  # type: ignore[arg-type]
    assert list(found) == ["digits"]


def test_a_folder_of_control_nets_that_cannot_be_read_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a readable folder of ControlNets"):
        control_bytes(folder / "tiny-sd", folder / "missing")
