"""A text-to-image run from the packages of drawings to its model folder.

config.json, metrics.csv, loss.png, samples/, checkpoints/, model/    the second stage, as in `run_folder`
autoencoder/                                                          the first stage, a run folder too
pictures.npz                                                          the drawings, rendered
tokenizer/                                                            the learned vocabulary
vae/                                                                  the finished autoencoder
latents.npy                                                           all pictures, encoded

Each of them is made once, and not again when the run is resumed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from denoised.model.checkpoints.text_to_image.pipeline_writing import save_autoencoder
from denoised.model.checkpoints.weight_files import find_weights
from denoised.model.checkpoints.weights import read_weights
from denoised.model.errors import TrainingError
from denoised.model.networks.autoencoder.autoencoder import Autoencoder
from denoised.model.networks.autoencoder.autoencoder_config import AutoencoderConfig
from denoised.model.progress import progress
from denoised.model.text.tokenizer import TextTokenizer
from denoised.model.training.emoji.captions import caption_corpus
from denoised.model.training.emoji.emoji_pictures import EmojiPictures, render_pictures
from denoised.model.training.emoji.held_out import held_out_combinations
from denoised.model.training.emoji.icon_packages import read_emoji
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint, read_newest_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.training_run import RunSchedule, run_learner
from denoised.model.training.text_to_image.autoencoder_trainer import AutoencoderTrainer
from denoised.model.training.text_to_image.latents import (
    encode_combinations,
    fit_preview,
    load_latents,
    normalize_latents,
    save_latents,
)
from denoised.model.training.text_to_image.text_outputs import AUTOENCODER_OUTPUTS, TEXT_OUTPUTS
from denoised.model.training.text_to_image.text_trainer import CaptionedLatents, TextTrainer
from denoised.model.training.text_to_image.text_training_config import TextTrainingConfig
from denoised.model.training.text_to_image.vocabulary import learn_merges, read_merges, save_tokenizer


class TextRun:
    """A run in a folder.

    data: the folder with the packages; only needed until the drawings are rendered.
    """

    def __init__(
        self, folder: RunFolder, config: TextTrainingConfig, data: Path | None, device: str, console: Console
    ) -> None:
        self.folder = folder
        self.config = config
        self.data = data
        self.device = device
        self.console = console

    def train(self, schedule: RunSchedule) -> int | None:
        """Do what is left of the run. Returns the signal that stopped it, or None if it is finished.

        Raises:
            DataError: if the drawings cannot be read.
            TrainingError: if the run cannot be resumed, or its loss diverges.
        """
        pictures = self._prepare_pictures()
        held_out = held_out_combinations(pictures)
        if not (self.folder.path / "vae" / "config.json").exists():
            signum = self._train_autoencoder(pictures, held_out, schedule)
            if signum is not None:
                return signum
        trainer = TextTrainer(self.config, self._prepare_latents(pictures, held_out), self.device)
        self._resume(trainer, self.folder)
        self._print(trainer)
        return run_learner(trainer, self.folder, schedule, self.console, TEXT_OUTPUTS)

    def trained(self) -> TextTrainer:
        """The trainer with the newest checkpoint, whose weights can be exported. The run may be in progress.

        Raises:
            TrainingError: if the U-Net's training has not begun.
        """
        if not self.folder.checkpoints():
            raise TrainingError(f"{self.folder.path} holds no checkpoint of a U-Net: train it with denoised train-text")
        pictures = self._prepare_pictures()
        latents = self._prepare_latents(pictures, held_out_combinations(pictures))
        trainer = TextTrainer(self.config, latents, self.device)
        read_newest_checkpoint(trainer, self.folder)
        return trainer

    def _prepare_pictures(self) -> EmojiPictures:
        path = self.folder.path / "pictures.npz"
        if path.exists():
            return EmojiPictures.load(path)
        if self.data is None:
            raise TrainingError(f"{path} is missing: name the folder with the packages with --data")
        emoji = read_emoji(self.data)
        total = sum(len(each.drawings) for each in emoji)
        with progress(self.console, "rendering", total, "drawings") as advance:
            pictures = render_pictures(emoji, advance)
        pictures.save(path)
        return pictures

    def _train_autoencoder(
        self, pictures: EmojiPictures, held_out: npt.NDArray[np.bool_], schedule: RunSchedule
    ) -> int | None:
        folder = RunFolder(self.folder.path / "autoencoder")
        if not folder.checkpoints():
            folder.create(self.config.autoencoder)
        trainer = AutoencoderTrainer(self.config.autoencoder, pictures, held_out, self.device)
        self._resume(trainer, folder)
        self._print(trainer)
        signum = run_learner(trainer, folder, schedule, self.console, AUTOENCODER_OUTPUTS)
        if signum is None:
            autoencoder = trainer.averaged_autoencoder()
            # Held-out pictures must not shape the latents either.
            normalize_latents(autoencoder, pictures, trainer.trained)
            save_autoencoder(self.folder.path / "vae", autoencoder.config, autoencoder.state_dict())
        return signum

    def _prepare_latents(self, pictures: EmojiPictures, held_out: npt.NDArray[np.bool_]) -> CaptionedLatents:
        autoencoder = load_autoencoder(self.folder.path / "vae", self.device)
        path = self.folder.path / "latents.npy"
        if not path.exists():
            with progress(self.console, "encoding", pictures.combinations, "pictures") as advance:
                save_latents(
                    path, encode_combinations(autoencoder, pictures, np.arange(pictures.combinations), advance)
                )
        latents = load_latents(path)
        tokenizer = self.folder.path / "tokenizer"
        if not tokenizer.exists():
            save_tokenizer(tokenizer, learn_merges(caption_corpus(pictures)))
        return CaptionedLatents(
            pictures=pictures,
            latents=latents,
            held_out=held_out,
            tokenizer=TextTokenizer.from_folder(tokenizer),
            merges=read_merges(tokenizer),
            autoencoder=autoencoder,
            preview=fit_preview(latents, pictures, np.flatnonzero(~held_out)),
        )

    def _resume(self, trainer: AutoencoderTrainer | TextTrainer, folder: RunFolder) -> None:
        if folder.checkpoints():
            load_newest_checkpoint(trainer, folder)

    def _print(self, trainer: AutoencoderTrainer | TextTrainer) -> None:
        what = "autoencoder" if isinstance(trainer, AutoencoderTrainer) else "U-Net and text encoder"
        parameters = sum(p.numel() for p in trainer.net.parameters())
        self.console.print(
            f"{what}: {len(trainer.trained):,} pictures · {parameters / 1e6:.1f} M parameters · "
            f"{str(trainer.amp_dtype).removeprefix('torch.')} · step {trainer.step:,} of {trainer.steps:,}",
            soft_wrap=True,
        )


def load_autoencoder(folder: Path, device: str = "cpu") -> Autoencoder:
    """The autoencoder in a folder of diffusers' `AutoencoderKL`, in float32.

    Raises:
        CheckpointError: if the folder is not complete or holds another network.
    """
    config = AutoencoderConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(read_weights(find_weights(folder), autoencoder.state_dict()))
    return autoencoder.to(device).eval().requires_grad_(False)
