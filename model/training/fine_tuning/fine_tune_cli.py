"""`denoised fine-tune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from denoised.command_line.console import print_status
from denoised.command_line.options import option
from denoised.model.checkpoints.text_to_image.pipelines import is_text_pipeline
from denoised.model.checkpoints.text_to_image.text_pipeline import TextPipeline, read_text_pipeline
from denoised.model.command_line import report_errors
from denoised.model.errors import TrainingError
from denoised.model.progress import progress
from denoised.model.serving.loading import build_prompt_encoder
from denoised.model.training.datasets.captioned_folder import read_captioned_folder
from denoised.model.training.datasets.image_folder import parse_color
from denoised.model.training.fine_tuning.caption_encoding import (
    CaptionEncoder,
    FrozenCaptionEncoder,
    TrainedCaptionEncoder,
)
from denoised.model.training.fine_tuning.fine_tuner import FineTuner
from denoised.model.training.fine_tuning.fine_tuning_config import FineTuningConfig
from denoised.model.training.fine_tuning.tuning_data import TuningData, encode_latents
from denoised.model.training.fine_tuning.tuning_outputs import adapter_file, tuning_outputs
from denoised.model.training.run.run_checkpoints import load_newest_checkpoint
from denoised.model.training.run.run_folder import RunFolder
from denoised.model.training.run.run_options import Device, Out, Resume
from denoised.model.training.run.training_run import RunSchedule, run_learner
from denoised.model.training.setting_options import with_setting_options
from denoised.model.training.settings import validate_settings

LOG_EVERY, CHECKPOINT_EVERY = 200, 2_000  # images


@with_setting_options(FineTuningConfig, ())
def fine_tune(
    *,
    model: Annotated[Path, option("--model", help="the folder of a text-to-image model")],
    data: Annotated[
        Path, option("--data", help="a folder of pictures, each with a caption in a .txt file, or a metadata.jsonl")
    ],
    out: Out,
    resume: Resume = False,
    device: Device = "cpu",
    checkpoint_every: Annotated[
        int, option("--checkpoint-every", help="images between two checkpoints", min=1)
    ] = CHECKPOINT_EVERY,
    given: dict[str, Any],
) -> None:
    """Fine-tune a text-to-image model on pictures with captions: its whole U-Net, or a low-rank adapter.

    With --train-text-encoder, the text encoders are trained with it, as a part of the model or of the adapter.

    With --lora-rank, OUT/loras holds an adapter to serve with --loras; without, OUT/model holds a model to serve with
    --model. Ctrl-C saves a checkpoint and stops; --resume continues exactly from there. The exit code is 130 after
    Ctrl-C and 143 after SIGTERM, as shells expect.
    """
    console, folder = Console(), RunFolder(out)
    with report_errors("fine-tune"):
        config = folder.config_to_resume(given, FineTuningConfig) if resume else FineTuningConfig(**given)
        validate_settings(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        if not resume:
            folder.check_new()
        pipeline = _read_model(model)
        encoded = _encode(pipeline, data, config, device, console)
        config = _with_digests(config, pipeline.digest, encoded.digest, resume=resume)
        learner = FineTuner(config, pipeline, _caption_encoder(config, pipeline, device), encoded, device)
        _prepare(learner, folder, resume=resume)
        _print(learner, console)
        schedule = RunSchedule(LOG_EVERY, checkpoint_every, sample_every=max(config.images, CHECKPOINT_EVERY))
        signum = run_learner(learner, folder, schedule, console, tuning_outputs(model))
    if signum is not None:
        console.print("Stopped; continue with --resume.", highlight=False)
        raise typer.Exit(128 + signum)
    result = adapter_file(folder) if config.lora_rank else folder.model
    console.print(f"Done: {result}", highlight=False, soft_wrap=True, markup=False)


def _read_model(folder: Path) -> TextPipeline:
    if not is_text_pipeline(folder):
        raise TrainingError(f"{folder} is not a text-to-image model: fine-tuning needs one that takes prompts")
    return read_text_pipeline(folder)


def _caption_encoder(config: FineTuningConfig, pipeline: TextPipeline, device: str) -> CaptionEncoder:
    if config.train_text_encoder:
        return TrainedCaptionEncoder(pipeline, device)
    return FrozenCaptionEncoder(build_prompt_encoder(pipeline, device))


def _encode(pipeline: TextPipeline, data: Path, config: FineTuningConfig, device: str, console: Console) -> TuningData:
    pictures, background = read_captioned_folder(data), parse_color(config.background)
    height, width = pipeline.image_size
    autoencoder = pipeline.autoencoder.eval().requires_grad_(False).to(device)
    with progress(console, "encoding", len(pictures), "pictures") as advance:
        return encode_latents(pictures, autoencoder, (width, height), background, advance)


def _with_digests(config: FineTuningConfig, model: str, data: str, *, resume: bool) -> FineTuningConfig:
    """The configuration with the digests of model and data; a resumed run has to have the same.

    Raises:
        TrainingError: if it has others.
    """
    for name, value in (("model", model), ("data", data)):
        stored = getattr(config, f"{name}_digest")
        if resume and stored != value:
            raise TrainingError(f"--{name} is not that of the run to resume (digest {value}, the run's: {stored})")
    return dataclasses.replace(config, model_digest=model, data_digest=data)


def _prepare(learner: FineTuner, folder: RunFolder, *, resume: bool) -> None:
    if resume:
        folder.write_config(learner.config)
        load_newest_checkpoint(learner, folder)
        return
    if (warning := learner.config.warm_up_warning()) is not None:
        print_status(warning)
    folder.create(learner.config)


def _print(learner: FineTuner, console: Console) -> None:
    parameters = sum(p.numel() for p in learner.net.parameters())
    config = learner.config
    what = f"adapter of rank {config.lora_rank}" if config.lora_rank else "U-Net"
    what += " with text encoders" if config.train_text_encoder else ""
    console.print(
        f"{what}: {len(learner.data.captions):,} pictures · {parameters / 1e6:.2f} M parameters · "
        f"{str(learner.amp_dtype).removeprefix('torch.')} · step {learner.step:,} of {learner.steps:,}",
        soft_wrap=True,
    )
