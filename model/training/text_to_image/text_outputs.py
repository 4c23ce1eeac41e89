"""What a text-to-image run writes besides its log: checkpoints, the model folder, and sheets of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from denoised.model.checkpoints.atomic import write_atomically
from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.checkpoints.text_to_image.pipeline_writing import PipelineContent, save_pipeline
from denoised.model.checkpoints.text_to_image.prompt_guide import PromptGuide
from denoised.model.training.emoji.captions import full_caption, write_caption
from denoised.model.training.emoji.emoji_pictures import COLOR_NAMES
from denoised.model.training.emoji.styles import STYLE_NAMES, credit_lines, license_line
from denoised.model.training.run.run_checkpoints import save_state
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.sample_grid import contact_sheet
from denoised.model.training.run.training_run import RunOutputs
from denoised.model.training.text_to_image.autoencoder_trainer import AutoencoderTrainer
from denoised.model.training.text_to_image.text_sampling import GUIDANCE_SCALE, SAMPLER, STEPS, sample_captions
from denoised.model.training.text_to_image.text_trainer import TextTrainer, held_out_examples
from denoised.model.training.text_to_image.vocabulary import save_tokenizer

SHEET_COLUMNS, SHEET_PICTURES = 10, 40
EXAMPLES = [
    write_caption("goat", "fluent", "teal"),
    write_caption("hot dog", "noto", "yellow"),
    write_caption("rocket", "flat", "purple"),
    write_caption("octopus", "twemoji", "blue"),
    write_caption("thinking face", "blob", "pink"),
]
GUIDE = PromptGuide(
    examples=EXAMPLES,
    template="{subject}, {style} style, on a {background} background",
    parts={"style": list(STYLE_NAMES), "background": list(COLOR_NAMES)},
)


def save_text_checkpoint(trainer: TextTrainer, folder: RunFolder) -> None:
    """Write a checkpoint and the model folder, then delete all but the newest two checkpoints."""
    save_state(trainer, folder)
    export_pipeline(trainer, folder.model)


def export_pipeline(trainer: TextTrainer, path: Path) -> None:
    """Write the averaged weights as a folder of `StableDiffusionPipeline`, with a model card; in float16, for size."""
    net, data = trainer.averaged_net(), trainer.data
    unet, autoencoder, text_encoder = (_half(each) for each in (net.unet, data.autoencoder, net.text_encoder))
    save_tokenizer(path / "tokenizer", data.merges, data.tokenizer.length)
    content = PipelineContent(
        unet=net.unet.config,
        unet_weights=unet,
        autoencoder=data.autoencoder.config,
        autoencoder_weights=autoencoder,
        text_encoder=net.text_encoder.config,
        text_encoder_weights=text_encoder,
        scheduler=trainer.config.scheduler_file,
        card=pipeline_card(trainer),
    )
    save_pipeline(path, content)


def pipeline_card(trainer: TextTrainer) -> CardFile:
    """The card of the model as it is now."""
    pictures, held_out = trainer.data.pictures, trainer.data.held_out
    return CardFile(
        description=f"Draws emoji from captions: {GUIDE.template}",
        default=Defaults(sampler=SAMPLER, steps=STEPS, guidance_scale=GUIDANCE_SCALE),
        data=(
            f"{len(pictures):,} drawings of {len(pictures.objects):,} emoji, on {pictures.colors} background colors; "
            f"{int(held_out.sum()):,} of {len(held_out):,} combinations are held out"
        ),
        license=f"Weights: Apache-2.0, as the project. Drawings: {license_line()}.",
        credits=credit_lines(),
        latent_rgb=[(red, green, blue) for red, green, blue in trainer.data.preview],
        prompt_guide=GUIDE,
        training={
            "images_seen": trainer.images_seen,
            "steps": trainer.step,
            "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
            **dataclasses.asdict(trainer.config),
        },
    )


def draw_text_samples(trainer: TextTrainer, folder: RunFolder) -> None:
    """Write a sheet of samples: the same captions, seeds and places in every sheet, none of them trained on."""
    combinations = held_out_examples(trainer.data, SHEET_PICTURES)
    captions = [full_caption(trainer.data.pictures, int(each)) for each in combinations]
    images = sample_captions(trainer.averaged_net(), trainer.data, trainer.config, captions)
    _save_sheet(folder.sample_grid(trainer.images_seen), list(images))
    _save_sheet(
        folder.path / "samples" / "originals.png",
        list(trainer.data.pictures.on_colors(combinations).permute(0, 2, 3, 1).numpy()),
    )


def draw_reconstructions(trainer: AutoencoderTrainer, folder: RunFolder) -> None:
    """Write a sheet of held-out pictures, each row followed by a row of their reconstructions."""
    original = trainer.held_out_pictures(SHEET_PICTURES // 2)
    pairs = [images.permute(0, 2, 3, 1).numpy() for images in (original, trainer.reconstruct(original))]
    rows = [
        image
        for start in range(0, len(original), SHEET_COLUMNS)
        for images in pairs
        for image in images[start : start + SHEET_COLUMNS]
    ]
    _save_sheet(folder.sample_grid(trainer.images_seen), rows)


TEXT_OUTPUTS = RunOutputs(save_text_checkpoint, draw_text_samples)
AUTOENCODER_OUTPUTS = RunOutputs[AutoencoderTrainer](save_state, draw_reconstructions)


def _half(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.half() for name, value in net.state_dict().items()}


def _save_sheet(path: Path, images: Sequence[npt.NDArray[np.uint8]]) -> None:
    sheet = contact_sheet(images, SHEET_COLUMNS)
    write_atomically(path, lambda temporary: sheet.save(temporary, format="png"))
