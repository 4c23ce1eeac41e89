"""The loss, one step of it, and a run that goes on exactly where it stopped."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from model.data import Dataset
from model.errors import TrainingError
from model.training import PRESETS, Trainer, TrainingConfig, ema_decay, order_of, unet_config

CONFIG = TrainingConfig(preset="tiny", images=320, batch=8, warmup=4, seed=3, precision="float32")


def run(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.train_step()[0] for _ in range(steps)]


def test_a_resumed_run_is_the_uninterrupted_one(dataset: Dataset) -> None:
    """Weights, moving average, optimiser, generators and order: equal to the last bit."""
    whole = Trainer(CONFIG, dataset)
    losses = run(whole, 12)
    first = Trainer(CONFIG, dataset)
    run(first, 7)
    state = {name: value.clone() for name, value in first.state().items()}
    torch.manual_seed(99)  # whatever happened in between
    second = Trainer(CONFIG, dataset)
    second.load_state(state)
    assert run(second, 5) == losses[7:]
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_a_checkpoint_of_another_network_is_refused(dataset: Dataset) -> None:
    state = Trainer(CONFIG, dataset).state()
    other = Trainer(dataclasses.replace(CONFIG, preset="tiny"), _with_labels(dataset, 7))
    with pytest.raises(TrainingError, match="another network"):
        other.load_state(state)


def test_a_run_can_begin_with_trained_weights(dataset: Dataset) -> None:
    trained, fresh = Trainer(CONFIG, dataset), Trainer(dataclasses.replace(CONFIG, seed=4), dataset)
    run(trained, 2)
    fresh.start_from(trained.net.state_dict())
    for name, weight in trained.net.state_dict().items():
        assert torch.equal(fresh.net.state_dict()[name], weight), name
        assert torch.equal(fresh.ema[name], weight), name


def test_weights_of_another_network_are_no_beginning(dataset: Dataset) -> None:
    other = Trainer(CONFIG, _with_labels(dataset, 7))
    with pytest.raises(TrainingError, match="the model to start from is of another network") as caught:
        Trainer(CONFIG, dataset).start_from(other.net.state_dict())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("measured", [torch.float32, torch.bfloat16])
def test_a_resumed_run_keeps_the_precision_that_was_measured_at_its_start(
    dataset: Dataset, measured: torch.dtype
) -> None:
    """Another measurement, on a machine that is busier now, may come out otherwise."""
    auto = dataclasses.replace(CONFIG, precision="auto")
    first, second, fixed = Trainer(auto, dataset), Trainer(auto, dataset), Trainer(CONFIG, dataset)
    first.amp_dtype = measured
    second.load_state(first.state())
    fixed.load_state(first.state())
    assert second.amp_dtype == measured
    assert fixed.amp_dtype == torch.float32, "what was asked for by name stays"


def test_every_image_has_its_turn_once_an_epoch() -> None:
    seen = torch.cat([order_of(20, seed=1, start=8 * k, batch=8) for k in range(5)])
    first, second = seen[:20], seen[20:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()
    assert order_of(20, 1, 16, 8).tolist() == seen[16:24].tolist()
    assert order_of(20, 2, 0, 20).tolist() != first.tolist()


@pytest.mark.parametrize(("decay", "step", "expected"), [(0.999, 0, 0.1), (0.999, 90, 0.91), (0.9, 1000, 0.9)])
def test_the_moving_average_warms_up(decay: float, step: int, expected: float) -> None:
    """SCIENCE trap 21: min(d, (1 + n)/(10 + n))."""
    assert ema_decay(decay, step) == pytest.approx(expected)


def test_the_moving_average_of_constant_weights_has_its_closed_form(dataset: Dataset) -> None:
    """SCIENCE trap 21: weights held, shadow from 0: after n updates 1 − ∏ dᵢ of them."""
    trainer = Trainer(dataclasses.replace(CONFIG, learning_rate=0.0), dataset)
    for value in trainer.ema.values():
        value.zero_()
    run(trainer, 6)
    share = 1 - math.prod(ema_decay(CONFIG.ema_decay, n) for n in range(1, 7))
    for name, weight in trainer.net.state_dict().items():
        torch.testing.assert_close(trainer.ema[name], share * weight, rtol=1e-5, atol=1e-7)


def test_the_loss_falls(dataset: Dataset) -> None:
    losses = run(Trainer(CONFIG, dataset), 40)
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_squared_distance_to_the_heads_own_target(dataset: Dataset, prediction_type: str) -> None:
    """A network that outputs zero has the mean square of its target as loss."""
    trainer = Trainer(dataclasses.replace(CONFIG, prediction_type=prediction_type), dataset)
    with torch.no_grad():
        trainer.net.conv_out.weight.zero_()
        trainer.net.conv_out.bias.zero_()
    x0, epsilon = torch.full((2, 1, 8, 8), 0.5), torch.full((2, 1, 8, 8), 2.0)
    t = torch.tensor([100, 900])
    alpha, sigma = trainer.alpha[t], trainer.sigma[t]
    targets = {"epsilon": 2.0 + 0 * alpha, "v_prediction": alpha * 2.0 - sigma * 0.5, "sample": 0.5 + 0 * alpha}
    expected = targets[prediction_type].square().mean().item()
    assert trainer.loss(x0, t, torch.tensor([0, 1]), epsilon).item() == pytest.approx(expected, rel=1e-5)


def test_all_labels_can_be_dropped_or_none(dataset: Dataset) -> None:
    """With every label hidden, only the null class's embedding is ever learned; with none, it never is."""
    for dropout, learned in ((1.0, [False, False, False, True]), (0.0, [True, True, True, False])):
        trainer = Trainer(dataclasses.replace(CONFIG, label_dropout=dropout), dataset)
        assert trainer.net.class_embedding is not None
        before = trainer.net.class_embedding.weight.detach().clone()
        run(trainer, 6)
        moved = (trainer.net.class_embedding.weight.detach() - before).abs().sum(dim=1) > 0
        assert moved.tolist() == learned


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainingConfig(images=1000, batch=10, learning_rate=1.0, warmup=10)
    assert config.steps == 100
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(50) == pytest.approx(0.5)
    assert config.rate(99) < 0.001
    constant = dataclasses.replace(config, lr_schedule="constant")
    assert [constant.rate(step) for step in (4, 9, 99)] == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_the_data_or_says_what_sides_it_takes(dataset: Dataset, preset: str) -> None:
    config = unet_config(preset, dataset)
    assert (config.sample_size, config.in_channels, config.num_class_embeds) == (8, 1, 4)
    odd = dataclasses.replace(dataset, images=dataset.images[..., :7])
    with pytest.raises(TrainingError, match=r"images of 7×8 do not fit preset .* multiples of"):
        unet_config(preset, odd)


def test_an_unknown_precision_is_refused(dataset: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"precision = 'half' is not known \(auto, float32, bfloat16\)"):
        Trainer(dataclasses.replace(CONFIG, precision="half"), dataset)


def test_a_measured_precision_leaves_no_trace(dataset: Dataset) -> None:
    """Timing passes are made before the first step; weights, gradients and generators are as without them."""
    auto, fixed = (Trainer(dataclasses.replace(CONFIG, precision=word), dataset) for word in ("auto", "float32"))
    assert all(parameter.grad is None for parameter in auto.net.parameters())
    for name, value in fixed.state().items():
        if name != "bfloat16":  # the outcome of the measurement
            assert torch.equal(value, auto.state()[name]), name


def _with_labels(dataset: Dataset, count: int) -> Dataset:
    return dataclasses.replace(dataset, labels=tuple(str(k) for k in range(count)))
