"""scikit-learn's digits: the small dataset that is always available."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets

from denoised.model.training.datasets.sources import load_dataset


def test_every_fifth_image_is_held_out() -> None:
    train, test = load_dataset(Path("digits")), load_dataset(Path("digits"), split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8)
    whole = datasets.load_digits()
    for split, chosen in ((test, np.arange(1797) % 5 == 0), (train, np.arange(1797) % 5 != 0)):
        assert split.labels == tuple("0123456789")
        assert split.source == "scikit-learn's digits"
        assert split.classes.tolist() == whole.target[chosen].tolist()
        assert torch.bincount(split.classes).min() > 0.06 * len(split), "each digit is in both"
        # 0 … 16 as bytes, exactly reversible.
        assert split.images.dtype == torch.uint8
        assert (split.images[:, 0].double() / 255 * 16).round().tolist() == whole.images[chosen].tolist()


def test_sixteen_is_white_and_zero_is_black() -> None:
    """round(v·255/16), where 8 · 255/16 = 127.5 rounds to the even 128."""
    images = load_dataset(Path("digits")).images
    assert images.unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    assert images.unique().tolist()[8] == 128


def test_a_folder_named_digits_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits" / "one").mkdir(parents=True)
    Image.new("L", (8, 8), 7).save(tmp_path / "digits" / "one" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert load_dataset(Path("digits"), 8).labels == ("one",)


def test_without_scikit_learn_the_error_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import runpy, sys; sys.modules['sklearn'] = None; sys.argv = ['denoised', 'train', *sys.argv[1:]]; "
        "runpy.run_module('model', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, "--data", "digits", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "denoised train: --data digits needs scikit-learn: install denoised's extra 'train'\n"
    assert not (tmp_path / "run").exists()
