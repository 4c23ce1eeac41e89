"""Presets, the learning rate, and configurations that are refused."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest

from denoised.model.errors import TrainingError
from denoised.model.training.datasets.dataset import Dataset
from denoised.model.training.presets import PRESETS, unet_config
from denoised.model.training.settings import settings
from denoised.model.training.train_cli import train
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig, validate


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainingConfig(images=1000, batch=10, learning_rate=1.0, warmup=10)
    assert config.steps == 100
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(50) == pytest.approx(0.5)
    assert config.rate(99) < 0.001
    constant = dataclasses.replace(config, lr_schedule="constant")
    assert [constant.rate(step) for step in (4, 9, 99)] == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_the_data_or_says_which_sides_fit(dataset: Dataset, preset: str) -> None:
    config = unet_config(preset, dataset)
    assert (config.sample_size, config.in_channels, config.num_class_embeds) == (8, 1, 4)
    odd = dataclasses.replace(dataset, images=dataset.images[..., :7])
    with pytest.raises(TrainingError, match=r"images of 7×8 do not fit preset .* multiples of"):
        unet_config(preset, odd)


def test_a_preset_sets_length_batch_rate_and_threads_unless_they_are_given() -> None:
    for name, preset in PRESETS.items():
        config = TrainingConfig.of({"preset": name})
        for key in ("images", "batch", "learning_rate", "threads"):
            assert getattr(config, key) == getattr(preset, key), (name, key)
    given = {"preset": "tiny", "images": 7, "batch": 2, "learning_rate": 0.5, "threads": 3}
    assert TrainingConfig.of(given) == TrainingConfig(**given)
    assert TrainingConfig.of({}) == TrainingConfig()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("preset", "huge", "preset = 'huge' is not known (known: tiny, small, medium, large)"),
        ("precision", "half", "precision = 'half' is not known (known: auto, float32, bfloat16)"),
        ("unreadable", "mend", "unreadable = 'mend' is not known (known: refuse, skip)"),
        ("lr_schedule", "step", "lr_schedule = 'step' is not known (known: cosine, constant, trapezoid)"),
        ("batch", 0, "batch = 0 is out of range (at least 1)"),
        ("accumulate", 0, "accumulate = 0 is out of range (at least 1)"),
        ("accumulate", 3, "accumulate = 3 does not divide batch = 128"),
        ("min_snr_gamma", 0.0, "min_snr_gamma = 0.0 is out of range (at least 0.01)"),
        ("min_snr_gamma", math.inf, "min_snr_gamma = inf is out of range (at least 0.01)"),
        ("learning_rate", math.nan, "learning_rate = nan is out of range (at least 0)"),
        ("label_dropout", -0.1, "label_dropout = -0.1 is out of range (0 … 1)"),
        ("threads", -1, "threads = -1 is out of range (0 … 1024)"),
        ("size", 0, "size = 0 is out of range (1 … 2048)"),
        ("size", -8, "size = -8 is out of range (1 … 2048)"),
        ("size", 10**6, "size = 1000000 is out of range (1 … 2048)"),
        ("size", 50, "size = 50 does not fit preset 'small': it must be a multiple of 4"),
    ],
)
def test_values_out_of_range_are_refused_with_the_limit(
    dataset: Dataset, key: str, value: object, expected: str
) -> None:
    config = dataclasses.replace(TrainingConfig(), **{key: value})
    for refuse in (validate, lambda config: Trainer(config, dataset)):
        with pytest.raises(TrainingError) as caught:
            refuse(config)
        assert str(caught.value) == expected


def test_every_setting_has_an_option_that_is_not_given_by_default() -> None:
    parameters = inspect.signature(train).parameters
    assert settings(TrainingConfig).keys() <= parameters.keys()
    assert "given" not in parameters
    assert {parameters[name].default.default for name in settings(TrainingConfig)} == {None}
    without = {field.name for field in dataclasses.fields(TrainingConfig)} - settings(TrainingConfig).keys()
    assert without == {"timesteps", "beta2", "weight_decay", "clip_norm", "dropout"}


def test_a_run_shorter_than_its_warm_up_says_how_far_its_learning_rate_gets() -> None:
    config = TrainingConfig(images=1280, batch=128, warmup=500, learning_rate=1e-3, lr_schedule="constant")
    expected = "the run of 10 steps ends within its warm-up of 500: its learning rate reaches 2.0e-05 of 1.0e-03"
    assert str(config.warm_up_warning()).startswith(expected)
    assert dataclasses.replace(config, warmup=10).warm_up_warning() is None
