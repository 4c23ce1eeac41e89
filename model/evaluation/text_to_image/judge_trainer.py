"""The judge in training: its loss, its batches, and how its pictures are changed.

Generated pictures are never quite where and as sharp as drawings are, so the judge sees drawings moved, scaled, blurred
and with noise. They are not mirrored: some objects differ from others by that alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from denoised.model.evaluation.text_to_image.judge import WIDTHS, JudgeCard, JudgeNetwork, build_judge
from denoised.model.training.datasets.dataset import to_unit
from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES, SIDE, EmojiPictures
from denoised.model.training.emoji.styles import STYLE_NAMES
from denoised.model.training.learner import Learner, shuffled_indices
from denoised.model.training.learning_config import LearningConfig
from denoised.model.training.learning_rate import LR_SCHEDULES
from denoised.model.training.precision import choose_precision
from denoised.model.training.settings import setting

MEASURED_PICTURES, TIMED_BATCH = 512, 32
BLUR_TAPS = 5  # pixels along each side of the blur


@dataclass(frozen=True)
class JudgeTrainingConfig(LearningConfig):
    """Everything that determines the judge's numbers; stored in the run's folder as `config.json`.

    widths: channels of the network's stages.
    label_smoothing: of the three cross-entropies.
    shift: the largest move in each direction, in pixels; scale: the largest change of size, as a fraction.
    blur: the largest standard deviation, in pixels; noise: the largest standard deviation, of 2.
    """

    images: int = setting(1_000_000, "number of images to train on, counting repetitions", at_least=1)
    batch: int = setting(64, "images per optimizer step", at_least=1)
    learning_rate: float = setting(2e-3, "peak learning rate", at_least=0)
    lr_schedule: str = setting("cosine", "learning rate schedule", choices=LR_SCHEDULES)
    warmup: int = setting(300, "steps of linear warm-up of the learning rate", at_least=0)
    weight_decay: float = 0.02
    widths: tuple[int, ...] = WIDTHS
    label_smoothing: float = 0.1
    shift: float = 3.0
    scale: float = 0.08
    blur: float = 1.2
    noise: float = 0.1


class JudgeTrainer(Learner):
    """A judge in training.

    pictures: all of them are trained on.
    card: of the judge that is exported.
    """

    config: JudgeTrainingConfig
    net: JudgeNetwork
    measured = ("object_accuracy", "style_accuracy", "background_accuracy")

    def __init__(self, config: JudgeTrainingConfig, pictures: EmojiPictures, device: str = "cpu") -> None:
        torch.manual_seed(config.seed)
        self.card = JudgeCard(
            objects=[each.code for each in pictures.objects],
            styles=list(STYLE_NAMES),
            backgrounds=list(COLOR_NAMES),
            widths=list(config.widths),
        )
        network = build_judge(self.card)
        super().__init__(config, network.to(memory_format=torch.channels_last), device)  # type: ignore[call-overload]
        self.pictures = pictures
        self.amp_dtype = choose_precision(config.precision, self.net, self._timed_loss, self.device)

    def backward(self) -> float:
        """Accumulate the gradient of the batch's mean loss, and return that loss."""
        pixels, answers = self._draw_batch()
        loss = self.loss(pixels.to(self.device), answers.to(self.device))
        loss.backward()
        return float(loss.detach())

    def loss(self, pixels: Tensor, answers: Tensor) -> Tensor:
        """The sum of the cross-entropies of object, style and background.

        pixels: (B, 3, H, W) in [−1, 1]; answers: (3, B) class indices.
        """
        with self.autocast():
            _, *logits = self.net(pixels.contiguous(memory_format=torch.channels_last))
        smoothing = self.config.label_smoothing
        parts = [
            F.cross_entropy(each.float(), answer, label_smoothing=smoothing)
            for each, answer in zip(logits, answers, strict=True)
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """How often the averaged weights are right about drawings, changed as in training by draws of their own."""
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        count = min(MEASURED_PICTURES, self.pictures.combinations)
        combinations = np.random.default_rng(0).permutation(self.pictures.combinations)[:count]
        pixels = disturb(to_unit(self.pictures.on_colors(combinations)), self.config, generator)
        # Its batch norms then use the averages of training.
        self.net.eval()  # the next step sets it back
        _, *logits = functional_call(self.net, self.ema, (pixels.to(self.device),))
        answers = correct_answers(self.pictures, combinations)
        right = [
            float((each.argmax(dim=1).cpu() == answer).double().mean())
            for each, answer in zip(logits, answers, strict=True)
        ]
        return dict(zip(self.measured, right, strict=True))

    def _draw_batch(self) -> tuple[Tensor, Tensor]:
        """Pictures and their answers of this step. Each combination comes once per epoch."""
        index = shuffled_indices(self.pictures.combinations, self.config.seed, self.images_seen, self.batch).numpy()
        pixels = disturb(to_unit(self.pictures.on_colors(index)), self.config, self.generator)
        return pixels, correct_answers(self.pictures, index)

    def _timed_loss(self) -> Tensor:
        self.net.train()
        _, *logits = self.net(torch.zeros(TIMED_BATCH, 3, SIDE, SIDE, device=self.device))
        return torch.cat([each.float() for each in logits], dim=1).square().mean()


def correct_answers(pictures: EmojiPictures, combinations: npt.NDArray[np.int64]) -> Tensor:
    """(3, B): the object, the style and the background of B combinations (`EmojiPictures`)."""
    drawing, color = combinations // pictures.colors, combinations % pictures.colors
    return torch.from_numpy(np.stack([pictures.object_of[drawing], pictures.style_of[drawing], color]))


def disturb(pixels: Tensor, config: JudgeTrainingConfig, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [−1, 1], each moved, scaled, blurred and with noise by amounts of its own."""
    count, side = len(pixels), pixels.shape[-1]
    draws = torch.rand(count, 5, generator=generator)
    # 1 ± config.scale, uniform: (B,).
    scale = 1 + config.scale * (2 * draws[:, 0] - 1)
    moves = 2 * config.shift / side * (2 * draws[:, 1:3] - 1)  # in the coordinates of the grid, −1 … 1
    theta = torch.zeros(count, 2, 3)
    # (B, 2, 3): where in the input each output position reads, so a scale over 1 shrinks the drawing.
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = moves
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    # Padding with the border's own pixels continues the background.
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # After the move, which blurs a little by itself; noise comes last, so that it is not blurred.
    blurred = gaussian_blur(moved, config.blur * draws[:, 3])
    noise = torch.randn(pixels.shape, generator=generator)
    return (blurred + config.noise * draws[:, 4].view(-1, 1, 1, 1) * noise).clamp(-1, 1)


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Pictures (B, C, H, W), each convolved with a Gaussian of its own standard deviation in pixels (B,)."""
    count, channels, height, width = pixels.shape
    position = torch.arange(BLUR_TAPS) - BLUR_TAPS // 2
    weights = torch.exp(-(position**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))  # (B, taps)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    reach = BLUR_TAPS // 2
    # One group for each channel of each picture: (1, B·C, H, W).
    flat = F.pad(pixels, (reach,) * 4, mode="replicate").reshape(1, count * channels, height + 2 * reach, -1)
    # The Gaussian is separable: rows, then columns.
    across = F.conv2d(flat, weights.view(-1, 1, 1, BLUR_TAPS), groups=count * channels)
    down = F.conv2d(across, weights.view(-1, 1, BLUR_TAPS, 1), groups=count * channels)
    return down.reshape(count, channels, height, width)
