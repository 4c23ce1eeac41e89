"""The loss, one training step, and resuming exactly where a run stopped."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from denoised.model.diffusion.predictions import x0_from_epsilon
from denoised.model.errors import TrainingError
from denoised.model.training.datasets.dataset import Dataset
from denoised.model.training.learner import ema_decay, shuffled_indices
from denoised.model.training.learning_config import OPTIMIZERS
from denoised.model.training.power_averages import PowerAverages
from denoised.model.training.trainer import Trainer
from denoised.model.training.training_config import TrainingConfig, validate

CONFIG = TrainingConfig(preset="tiny", images=320, batch=8, warmup=4, seed=3, precision="float32")


def run(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.train_step()[0] for _ in range(steps)]


def in_double(trainer: Trainer) -> Trainer:
    """The trainer computing in float64, from the same draws."""
    draw = trainer._draw_batch
    trainer.net.double()
    trainer.ema = {name: value.double() for name, value in trainer.ema.items()}
    trainer.alpha, trainer.sigma, trainer.weights = (
        table.double() for table in (trainer.alpha, trainer.sigma, trainer.weights)
    )

    def draw_in_double() -> tuple[Tensor, ...]:
        return tuple(value.double() if value.is_floating_point() else value for value in draw())

    trainer._draw_batch = draw_in_double  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(dataset: Dataset, optimizer: str) -> None:
    """Weights, moving average, optimizers, generators and order are bitwise equal."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    whole = Trainer(config, dataset)
    losses = run(whole, 12)
    first = Trainer(config, dataset)
    run(first, 7)
    state = {name: value.clone() for name, value in first.state().items()}
    torch.manual_seed(99)  # random state changed in between
    second = Trainer(config, dataset)
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


def test_a_run_can_start_from_trained_weights(dataset: Dataset) -> None:
    trained, fresh = Trainer(CONFIG, dataset), Trainer(dataclasses.replace(CONFIG, seed=4), dataset)
    run(trained, 2)
    fresh.start_from(trained.net.state_dict())
    found = fresh.net.state_dict()
    for name, weight in trained.net.state_dict().items():
        assert torch.equal(found[name], weight), name
        assert torch.equal(fresh.ema[name], weight), name


def test_a_run_cannot_start_from_weights_of_another_network(dataset: Dataset) -> None:
    other = Trainer(CONFIG, _with_labels(dataset, 7))
    with pytest.raises(TrainingError, match="the model to start from is of another network") as caught:
        Trainer(CONFIG, dataset).start_from(other.net.state_dict())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("measured", [torch.float32, torch.bfloat16])
def test_a_resumed_run_keeps_the_precision_measured_at_its_start(dataset: Dataset, measured: torch.dtype) -> None:
    """Measuring again on a busier machine could give another precision."""
    auto = dataclasses.replace(CONFIG, precision="auto")
    first, second, fixed = Trainer(auto, dataset), Trainer(auto, dataset), Trainer(CONFIG, dataset)
    first.amp_dtype = measured
    second.load_state(first.state())
    fixed.load_state(first.state())
    assert second.amp_dtype == measured
    assert fixed.amp_dtype == torch.float32, "an explicit precision is kept"


def test_every_image_comes_once_per_epoch() -> None:
    seen = torch.cat([shuffled_indices(20, seed=1, start=8 * k, batch=8) for k in range(5)])
    first, second = seen[:20], seen[20:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()
    assert shuffled_indices(20, 1, 16, 8).tolist() == seen[16:24].tolist()
    assert shuffled_indices(20, 2, 0, 20).tolist() != first.tolist()


@pytest.mark.parametrize(("decay", "step", "expected"), [(0.999, 0, 0.1), (0.999, 90, 0.91), (0.9, 1000, 0.9)])
def test_the_moving_average_warms_up(decay: float, step: int, expected: float) -> None:
    """min(d, (1 + n)/(10 + n)), as in TensorFlow's ExponentialMovingAverage."""
    assert ema_decay(decay, step) == pytest.approx(expected)


def test_the_moving_average_of_constant_weights_has_its_closed_form(dataset: Dataset) -> None:
    """With constant weights and an average that starts at 0, it is (1 − ∏ dᵢ)·weights after n updates."""
    trainer = Trainer(dataclasses.replace(CONFIG, learning_rate=0.0), dataset)
    for value in trainer.ema.values():
        value.zero_()
    run(trainer, 6)
    share = 1 - math.prod(ema_decay(CONFIG.ema_decay, n) for n in range(1, 7))
    for name, weight in trainer.net.state_dict().items():
        torch.testing.assert_close(trainer.ema[name], share * weight, rtol=1e-5, atol=1e-7)


def test_buffers_are_copied_not_averaged(dataset: Dataset) -> None:
    """The mean of a buffer over time is the buffer of no network (denoising-diffusion-pytorch issue 136)."""
    trainer = Trainer(CONFIG, dataset)
    trainer.net.register_buffer("running", torch.tensor([1.0]))
    trainer.ema["running"] = torch.tensor([0.0])
    trainer.power_averages = PowerAverages(trainer.net)
    for value in (1.0, 5.0):
        trainer.net.running.fill_(value)
        trainer.train_step()
        assert trainer.ema["running"].item() == value
        assert all(average["running"].item() == value for average in trainer.power_averages.values.values())


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_batch_in_parts_gives_the_update_of_the_whole_batch(
    dataset: Dataset, parts: int, gamma: float | None
) -> None:
    """From equal random draws, with plain gradient descent at rate 1, in float64.

    The parts add the same terms in another order, so the difference is rounding: of the gradient's 20,000 terms of
    size 1, at most 20,000·ε = 4e-12. Adam would divide a rounding error by its own size where the gradient is zero,
    as for the bias of attention keys.
    """
    config = dataclasses.replace(CONFIG, min_snr_gamma=gamma, learning_rate=1.0)
    whole, accumulated = (
        in_double(Trainer(dataclasses.replace(config, accumulate=count), dataset)) for count in (1, parts)
    )
    before = {name: value.clone() for name, value in whole.net.state_dict().items()}
    for trainer in (whole, accumulated):
        trainer.optimizers = {"optimizer": torch.optim.SGD(trainer.net.parameters())}
    for _ in range(3):
        assert accumulated.train_step() == pytest.approx(whole.train_step(), rel=1e-10)
    found = accumulated.net.state_dict()
    for name, weight in whole.net.state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-10, msg=name)
    assert max((weight - before[name]).abs().max() for name, weight in whole.net.state_dict().items()) > 0.01


def test_the_network_gets_one_part_of_a_batch_at_a_time(dataset: Dataset) -> None:
    trainer, seen = Trainer(dataclasses.replace(CONFIG, accumulate=4), dataset), []
    trainer.net.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    trainer.train_step()
    assert seen == [2, 2, 2, 2]


def drawn(trainer: Trainer, steps: int) -> Tensor:
    """The images x_0 that the network is trained on, with the noise subtracted again."""
    images: list[Tensor] = []
    loss = trainer.loss

    def note(x0: Tensor, t: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
        images.append(x0)
        return loss(x0, t, labels, epsilon)

    trainer.loss = note  # type: ignore[method-assign]
    run(trainer, steps)
    return torch.cat(images)


@pytest.fixture
def slopes() -> Dataset:
    """Images that get brighter to the right, so that mirrored ones are recognizable."""
    images = torch.arange(8, dtype=torch.uint8).mul(30).expand(20, 1, 8, 8).contiguous()
    return Dataset(images=images, classes=torch.zeros(20, dtype=torch.int64), labels=("slope",), source="slopes")


def test_nothing_is_mirrored_by_default(slopes: Dataset) -> None:
    """Other trainers mirror by default (denoising-diffusion-pytorch, guided-diffusion), which ruins digits."""
    assert not TrainingConfig().flip
    images = drawn(Trainer(CONFIG, slopes), 20)
    assert (images[..., 0] < images[..., -1]).all()


def test_flip_mirrors_half_of_the_images(slopes: Dataset) -> None:
    images = drawn(Trainer(dataclasses.replace(CONFIG, flip=True), slopes), 40)
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, -1]
    assert 0.4 < mirrored.float().mean() < 0.6  # 320 tosses: ±3.6 standard deviations
    assert torch.equal(
        torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images), images[~mirrored][:1].expand_as(images)
    )


def test_a_resumed_run_mirrors_the_same_images(dataset: Dataset) -> None:
    config = dataclasses.replace(CONFIG, flip=True)
    whole, first, second = (Trainer(config, dataset) for _ in range(3))
    losses = run(whole, 8)
    run(first, 5)
    second.load_state(first.state())
    assert run(second, 3) == losses[5:]
    assert run(Trainer(CONFIG, dataset), 8) != losses


class OptimalNetwork(nn.Module):
    """The optimal network for independent pixels N(μ, s²): E[ε | x_t] = σ(x − αμ)/v with v = α²s² + σ²."""

    def __init__(self, trainer: Trainer, mu: float, s: float) -> None:
        super().__init__()
        self.alpha, self.sigma = trainer.alpha.double(), trainer.sigma.double()
        self.mu, self.s, self.head = mu, s, trainer.config.prediction_type

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        alpha, sigma = (table[t].view(-1, 1, 1, 1) for table in (self.alpha, self.sigma))
        epsilon = sigma * (x - alpha * self.mu) / (alpha**2 * self.s**2 + sigma**2)
        x0 = x0_from_epsilon(x, epsilon, alpha.flatten(), sigma.flatten())
        return {"epsilon": epsilon, "sample": x0, "v_prediction": alpha * epsilon - sigma * x0}[self.head]


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("head", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [10, 400, 800])
def test_the_loss_of_the_optimal_network_is_the_minimum(
    dataset: Dataset, head: str, gamma: float | None, t: int
) -> None:
    """For ε: E‖ε − ε*‖²/d = α²s²/v. Errors of v are 1/α and errors of x_0 σ/α times those of ε. Within 5 s.e."""
    mu, s, count = 0.3, 0.5, 4096
    trainer = Trainer(dataclasses.replace(CONFIG, prediction_type=head, min_snr_gamma=gamma), dataset)
    alpha, sigma = trainer.alpha[t].double(), trainer.sigma[t].double()
    factor = {"epsilon": 1.0, "v_prediction": 1 / alpha**2, "sample": sigma**2 / alpha**2}[head]
    least = factor * alpha**2 * s**2 / (alpha**2 * s**2 + sigma**2)
    snr = alpha**2 / sigma**2
    if gamma is not None:
        least *= min(snr, gamma) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[head]
    trainer.net = OptimalNetwork(trainer, mu, s)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    x0 = mu + s * torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    epsilon = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    loss = trainer.loss(x0, torch.full((count,), t), torch.zeros(count, dtype=torch.int64), epsilon)
    # The squared error of a normal number has a relative standard deviation of √2.
    assert loss.item() == pytest.approx(float(least), rel=5 * math.sqrt(2 / (count * 64)))


def test_a_diverging_run_stops_with_unchanged_weights(dataset: Dataset) -> None:
    trainer = Trainer(CONFIG, dataset)
    run(trainer, 2)
    trainer.alpha[:] = math.inf
    before = {name: value.clone() for name, value in trainer.state().items() if name.startswith(("net.", "ema."))}
    with pytest.raises(TrainingError, match=r"the gradient of step 2 is nan: --resume .* than 0\.001") as caught:
        trainer.train_step()
    assert "\n" not in str(caught.value)
    assert trainer.step == 2
    after = trainer.state()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_the_loss_falls(dataset: Dataset) -> None:
    losses = run(Trainer(CONFIG, dataset), 40)
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_squared_error_of_the_prediction_target(dataset: Dataset, prediction_type: str) -> None:
    """The loss of a network that outputs zero is the mean square of its target."""
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


def test_measuring_the_precision_changes_no_state(dataset: Dataset) -> None:
    """The timed passes before the first step leave weights, gradients and generators unchanged."""
    auto, fixed = (Trainer(dataclasses.replace(CONFIG, precision=word), dataset) for word in ("auto", "float32"))
    assert all(parameter.grad is None for parameter in auto.net.parameters())
    found = auto.state()
    for name, value in fixed.state().items():
        if name != "bfloat16":  # the result of the measurement
            assert torch.equal(value, found[name]), name


def _with_labels(dataset: Dataset, count: int) -> Dataset:
    return dataclasses.replace(dataset, labels=tuple(str(k) for k in range(count)))


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("head", ["v_prediction", "sample"])
def test_a_schedule_that_ends_in_noise_is_trained_up_to_its_end(
    dataset: Dataset, head: str, gamma: float | None
) -> None:
    """At the last timestep x_T is the noise itself, and the loss is finite."""
    config = dataclasses.replace(CONFIG, zero_snr=True, prediction_type=head, min_snr_gamma=gamma)
    trainer = Trainer(config, dataset)
    assert (float(trainer.alpha[-1]), float(trainer.sigma[-1])) == (0.0, 1.0)
    x0, labels = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.long)
    last = torch.full((4,), 999)
    assert torch.isfinite(trainer.loss(x0, last, labels, torch.randn(4, 1, 8, 8)))
    assert all(math.isfinite(loss) for loss in run(trainer, 5))


def test_predicting_noise_is_refused_with_zero_snr() -> None:
    with pytest.raises(TrainingError, match="prediction_type = 'epsilon' does not work with zero_snr"):
        validate(dataclasses.replace(CONFIG, zero_snr=True, prediction_type="epsilon"))
