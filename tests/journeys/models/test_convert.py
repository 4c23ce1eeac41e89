"""`denoised convert` as a program: a single file and a hub's vocabulary become a folder that is served."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from denoised.model.text.tokenizer import TextTokenizer
from tests import fork_server
from tests.hub_server import HubRepository, hub_server, read_folder
from tests.original_checkpoints import SD1, shrunken, write_checkpoint
from tests.text_pipelines import write_vocabulary


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "denoised", "convert", *arguments]
    return fork_server.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, and a tokenizer's folder."""
    folder = tmp_path_factory.mktemp("file")
    (folder / "tokenizer").mkdir()
    write_vocabulary(folder / "tokenizer")
    size = TextTokenizer.from_folder(folder / "tokenizer").vocabulary_size
    write_checkpoint(folder / "tiny.safetensors", shrunken(SD1, size))
    return folder


def test_the_vocabulary_comes_from_the_hub_and_it_says_so(folder: Path, tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.repositories["openai/clip-vit-large-patch14"] = HubRepository(read_folder(folder / "tokenizer"))
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        done = run(environment, str(folder / "tiny.safetensors"), str(tmp_path / "tiny"))
        again = run(environment, str(folder / "tiny.safetensors"), str(tmp_path / "tiny"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'tiny'}\n"), done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"{folder / 'tiny.safetensors'}: Stable Diffusion 1.x, a U-Net of ")
    assert lines[1] == "prediction: epsilon (as in Stable Diffusion 1.x)"
    assert lines[2].startswith("left out: 4 tensors")
    assert lines[3].startswith("the file holds no vocabulary; taking that of openai/clip-vit-large-patch14")
    assert again.returncode == 1
    assert again.stderr == f"denoised convert: {tmp_path / 'tiny'}: exists already; name a new folder\n"


@pytest.mark.slow
def test_a_converted_file_is_served(folder: Path, tmp_path: Path, start_service: Callable[..., Any]) -> None:
    arguments = (str(folder / "tiny.safetensors"), str(tmp_path / "tiny"), "--tokenizer", str(folder / "tokenizer"))
    assert run({}, *arguments).returncode == 0
    service = start_service(tmp_path / "data", "--model", str(tmp_path / "tiny"))
    with service.client() as client:
        body = {"model": "tiny", "prompt": "a goat", "seed": 1, "steps": 2, "width": 16, "height": 16}
        answer = client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
