"""The second stage: batches, the loss, resuming, and sampling."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoised.model.diffusion.predictions import epsilon_from_x0, v_target
from denoised.model.training.emoji.captions import full_caption
from denoised.model.training.text_to_image import text_trainer
from denoised.model.training.text_to_image.text_sampling import sample_captions
from denoised.model.training.text_to_image.text_trainer import CaptionedLatents, TextTrainer
from denoised.model.training.text_to_image.text_training_config import TextTrainingConfig

CONFIG = TextTrainingConfig(preset="tiny", images=640, batch=16, warmup=2, precision="float32", learning_rate=3e-3)


def run(trainer: TextTrainer, steps: int) -> list[float]:
    return [trainer.train_step()[0] for _ in range(steps)]


@dataclasses.dataclass(frozen=True)
class RecordedLatents(CaptionedLatents):
    """Remembers which combinations were read."""

    recorded: list[np.ndarray] = dataclasses.field(default_factory=list)

    def read_latents(self, combinations: np.ndarray) -> Tensor:
        self.recorded.append(combinations)
        return super().read_latents(combinations)


def test_no_held_out_combination_is_in_a_batch_and_every_other_one_is(captioned: CaptionedLatents) -> None:
    """One epoch: each trained combination comes once, whatever is held out never."""
    fields = {field.name: getattr(captioned, field.name) for field in dataclasses.fields(captioned)}
    data = RecordedLatents(**fields)
    trained = np.flatnonzero(~captioned.held_out)
    trainer = TextTrainer(dataclasses.replace(CONFIG, batch=len(trained) // 5), data)
    data.recorded.clear()
    run(trainer, 5)
    seen = np.concatenate(data.recorded)
    assert captioned.held_out.sum() > 20
    assert not captioned.held_out[seen].any()
    assert len(set(seen)) == len(seen) == len(trained) // 5 * 5


def test_a_resumed_run_equals_an_uninterrupted_one(captioned: CaptionedLatents) -> None:
    """Weights, moving average, moments, captions, noise and order are bitwise equal, in channels-last memory too."""
    whole = TextTrainer(CONFIG, captioned)
    losses = run(whole, 6)
    first = TextTrainer(CONFIG, captioned)
    run(first, 3)
    state = {name: value.clone() for name, value in first.state().items()}
    torch.manual_seed(99)  # random state changed in between
    second = TextTrainer(CONFIG, captioned)
    second.load_state(state)
    assert run(second, 3) == losses[3:]
    expected, found = whole.state(), second.state()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_the_networks_are_trained_together(captioned: CaptionedLatents) -> None:
    trainer = TextTrainer(CONFIG, captioned)
    before = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    run(trainer, 3)
    unchanged = [name for name, value in trainer.net.state_dict().items() if torch.equal(before[name], value)]
    assert unchanged == []


def test_measuring_and_sampling_change_no_number_of_a_run(
    captioned: CaptionedLatents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_trainer, "MEASURED_PICTURES", 8)
    quiet, busy = TextTrainer(CONFIG, captioned), TextTrainer(CONFIG, captioned)
    run(quiet, 2)
    run(busy, 1)
    busy.measure()
    sample_captions(busy.averaged_net(), captioned, CONFIG, ["goat"], steps=2)
    run(busy, 1)
    found = busy.state()
    for name, value in quiet.state().items():
        assert torch.equal(value, found[name]), name


class LookUp(nn.Module):
    """Predicts v exactly for the latents of a caption, which it knows by heart."""

    def __init__(self, trainer: TextTrainer, captions: dict[tuple[int, ...], Tensor]) -> None:
        super().__init__()
        self.alpha, self.sigma, self.captions = trainer.alpha, trainer.sigma, captions

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        x0 = torch.stack([self.captions[tuple(row)] for row in tokens.tolist()])
        alpha, sigma = self.alpha[t], self.sigma[t]
        return v_target(x0, epsilon_from_x0(x, x0, alpha, sigma), alpha, sigma)


def test_the_log_has_the_loss_with_right_and_with_shuffled_captions(captioned: CaptionedLatents) -> None:
    trainer = TextTrainer(CONFIG, captioned)
    untrained = trainer.measure()
    assert set(untrained) == set(trainer.measured)
    assert untrained["held_out_loss"] == pytest.approx(untrained["shuffled_loss"], rel=0.05)
    combinations = trainer.measured_combinations
    tokens = captioned.encode_captions([full_caption(captioned.pictures, int(each)) for each in combinations])
    known = dict(zip(map(tuple, tokens.tolist()), captioned.read_latents(combinations), strict=True))
    trainer.net = LookUp(trainer, known)  # type: ignore[assignment]
    exact = trainer.measure()
    assert exact["held_out_loss"] == pytest.approx(0, abs=1e-6)
    assert exact["shuffled_loss"] > 0.1


def test_measured_combinations_are_held_out_and_of_different_objects(captioned: CaptionedLatents) -> None:
    trainer = TextTrainer(CONFIG, captioned)
    assert captioned.held_out[trainer.measured_combinations].all()
    captions = [full_caption(captioned.pictures, int(each)) for each in trainer.measured_combinations]
    assert len({caption.split(",")[0] for caption in captions[:10]}) > 1


def test_a_sample_depends_on_its_seed_and_caption_alone(captioned: CaptionedLatents) -> None:
    trainer = TextTrainer(CONFIG, captioned)
    run(trainer, 2)
    net = trainer.averaged_net()
    images = sample_captions(net, captioned, CONFIG, ["goat", "bell, noto style"], steps=3)
    assert images.shape == (2, 32, 32, 3)
    assert images.dtype == np.uint8
    alone = sample_captions(net, captioned, CONFIG, ["goat"], steps=3)
    # Sums of matrix products may be ordered by the size of the batch.
    assert np.abs(images[:1].astype(int) - alone.astype(int)).max() <= 1
