"""The noise schedule of a single file, which holds none: that of its family, and what the file says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from denoised.model.checkpoints.writing import DIFFUSERS_VERSION
from denoised.model.conversion.single_file import V_PREDICTION_MARK, ZERO_SNR_MARK, Family, SingleFile

Prediction = Literal["epsilon", "v_prediction"]

# diffusers' own scheduler files of the models that Stability AI and Runway published.
SCHEDULERS: dict[Family, dict[str, Any]] = {
    Family.SD1: {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
    Family.SD2: {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False},
    Family.SDXL: {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "use_karras_sigmas": False},
}
# `modelspec.prediction_type` in a file's metadata.
METADATA_KEY = "modelspec.prediction_type"
METADATA_VALUES: dict[str, Prediction] = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


@dataclass(frozen=True)
class PredictionChoice:
    """What the network predicts, and who says so.

    Attributes:
        prediction: as diffusers names it.
        reason: for people.
        zero_snr: whether the noise schedule ends without signal.
    """

    prediction: Prediction
    reason: str
    zero_snr: bool


def choose_prediction(file: SingleFile, given: Prediction | None) -> PredictionChoice:
    """The prediction that a person names, else the file, else what is usual in its family."""
    zero_snr = file.has(ZERO_SNR_MARK)
    if given is not None:
        return PredictionChoice(given, "as --prediction says", zero_snr)
    if file.has(V_PREDICTION_MARK):
        return PredictionChoice("v_prediction", f"by the file's tensor {V_PREDICTION_MARK!r}", zero_snr)
    if (stated := METADATA_VALUES.get(file.metadata.get(METADATA_KEY, ""))) is not None:
        return PredictionChoice(stated, "by the file's metadata", zero_snr)
    if file.family is Family.SD2:
        reason = "assumed, as in 2.1 at 768 pixels: files of 2.x do not say; for a 2.x base model (512 pixels), "
        return PredictionChoice("v_prediction", f"{reason}pass --prediction epsilon", zero_snr)
    return PredictionChoice("epsilon", f"as in {file.family}", zero_snr)


def trained_pixels(family: Family, prediction: Prediction) -> int:
    """Pixels along each side of the pictures that a model was trained on."""
    if family is Family.SDXL:
        return 1024
    return 768 if family is Family.SD2 and prediction == "v_prediction" else 512


def scheduler_content(family: Family, choice: PredictionChoice) -> dict[str, Any]:
    """The content of `scheduler_config.json`."""
    content = {
        **SCHEDULERS[family],
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": choice.prediction,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if choice.zero_snr:
        # Lin et al. 2023 (arXiv:2305.08891): sampling starts at the last timestep.
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return {**content, **zero_snr} if family is not Family.SD1 else {**content, "_class_name": "DDIMScheduler"}
    return content
