"""A model folder that cannot be served: the real programs exit with an error of one line (file, key and cause)."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fork_server

CONFIG = "unet/config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PICKLE = "unet/diffusion_pytorch_model.bin"


class Canary:
    """Creates a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.file,))


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """A copy of the bundled model under another name."""
    return Path(shutil.copytree(repository / "model/zoo/fashion-mnist", tmp_path / "copy"))


def an_unknown_key(folder: Path) -> str:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_hid_dim": 768}))
    return f"{path}: config key 'encoder_hid_dim' is not understood"


def a_truncated_file(folder: Path) -> str:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    return f"{path}: not a complete safetensors file ("


def a_pickle(folder: Path) -> str:
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).write_bytes(pickle.dumps(Canary(folder / "trace")))
    return f"{folder / PICKLE}: is a pickle, which can run code: convert it to safetensors"


@pytest.mark.parametrize("fault", [an_unknown_key, a_pickle], ids=lambda fault: fault.__name__)
def test_the_worker_exits_with_one_line(folder: Path, fault: Callable[[Path], str]) -> None:
    expected = fault(folder)
    command = [sys.executable, "-m", "denoised", "worker", "--threads", "1", "--model", str(folder)]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # without the log
    assert lines[0].startswith(f"denoised worker: {expected}")
    assert done.stderr.count("\n") == 1
    assert not (folder / "trace").exists()


def test_serve_exits_with_the_workers_line(folder: Path) -> None:
    expected = a_truncated_file(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "denoised", "serve", "--port", str(port), "--data-dir", str(folder / "data")]
    done = fork_server.run([*command, "--model", str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # without the log
    assert lines[0].startswith(f"denoised worker: {expected}")
    assert len(lines) == 1
