"""The keys of `scheduler_config.json`: fill in the defaults of the class that the file names, and refuse the rest.

Each of diffusers' scheduler classes has its own defaults: DDPM and DDIM clip x̂_0 unless the file says
otherwise, the others do not; Heun's β are not DDPM's. The defaults equal those of diffusers 0.42.

Schedulers are often made from each other's files, so a file may hold keys of other classes. As in diffusers
they are ignored, except for the keys that only one of our samplers reads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from denoised.model.errors import CheckpointError, abbreviate

Keys = dict[str, Any]

BETA_KEYS: Keys = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
HEUN_BETA_KEYS: Keys = {**BETA_KEYS, "beta_start": 0.00085, "beta_end": 0.012}
LEADING: Keys = {"timestep_spacing": "leading", "steps_offset": 0}
LINSPACE: Keys = {"timestep_spacing": "linspace", "steps_offset": 0}
CLIPPED: Keys = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLDING: Keys = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
ZERO_SNR: Keys = {"rescale_betas_zero_snr": False}
SPACED: Keys = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
FLOW: Keys = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
DPM: Keys = {
    **BETA_KEYS,
    **THRESHOLDING,
    **SPACED,
    **FLOW,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
}

DISTILLED: Keys = {
    **BETA_KEYS,
    **LEADING,
    **THRESHOLDING,
    **ZERO_SNR,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}

# The one class here with exploding variance, x_σ = x_0 + σ·ε; see `model.networks.unet.score_network`.
VARIANCE_EXPLODING = "ScoreSdeVeScheduler"

# Every key of a class with its default.
DEFAULTS: dict[str, Keys] = {
    "DDPMScheduler": {**BETA_KEYS, **LEADING, **CLIPPED, **THRESHOLDING, **ZERO_SNR, "variance_type": "fixed_small"},
    "DDIMScheduler": {**BETA_KEYS, **LEADING, **CLIPPED, **THRESHOLDING, **ZERO_SNR, "set_alpha_to_one": True},
    "PNDMScheduler": {**BETA_KEYS, **LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": {
        **DPM,
        **LINSPACE,
        **ZERO_SNR,
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
    },
    "DPMSolverSinglestepScheduler": {**DPM, "lower_order_final": False},
    "UniPCMultistepScheduler": {
        **BETA_KEYS,
        **LINSPACE,
        **THRESHOLDING,
        **ZERO_SNR,
        **SPACED,
        **FLOW,
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "DEISMultistepScheduler": {
        **BETA_KEYS,
        **LINSPACE,
        **THRESHOLDING,
        **SPACED,
        **FLOW,
        "solver_order": 2,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
    },
    "EulerDiscreteScheduler": {
        **BETA_KEYS,
        **LINSPACE,
        **ZERO_SNR,
        **SPACED,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**BETA_KEYS, **LINSPACE, **ZERO_SNR},
    "HeunDiscreteScheduler": {**HEUN_BETA_KEYS, **LINSPACE, **SPACED, **CLIPPED, "clip_sample": False},
    "LMSDiscreteScheduler": {**BETA_KEYS, **LINSPACE, **SPACED},
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
    "DPMSolverSDEScheduler": {**HEUN_BETA_KEYS, **LINSPACE, **SPACED, "noise_sampler_seed": None},
    "KDPM2DiscreteScheduler": {**HEUN_BETA_KEYS, **LINSPACE, **SPACED},
    "KDPM2AncestralDiscreteScheduler": {**HEUN_BETA_KEYS, **LINSPACE, **SPACED},
    VARIANCE_EXPLODING: {
        "num_train_timesteps": 2000,
        "snr": 0.15,
        "sigma_min": 0.01,
        "sigma_max": 1348.0,
        "sampling_eps": 1e-5,
        "correct_steps": 1,
    },
}
# The values of keys that a class does not have.
ABSENT_KEYS: Keys = {
    **LINSPACE,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "variance_type": "fixed_small",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
# Keys that only our `ddpm`, `ddim` or distilled samplers read: honored in the files of other classes too.
SINGLE_SAMPLER_KEYS = ("variance_type", "set_alpha_to_one", "original_inference_steps", "timestep_scaling")
# Keys of diffusers' first releases that do not concern the noise.
IGNORED_KEYS = ("tensor_format",)

SAMPLERS_BY_CLASS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "KDPM2DiscreteScheduler": "dpm_2",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    # Its counterpart, not its equal: step sizes are fixed here, not measured on a batch by `snr` and `correct_steps`.
    VARIANCE_EXPLODING: "pc",
}
# Keys whose other values would give another image than the class's sampler here, with the values that do not.
SUPPORTED_KEY_VALUES: dict[str, tuple[Any, ...]] = {
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "final_sigmas_type": ("zero", None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
    "solver_type": ("midpoint", "bh2"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
}
SOLVER_ORDERS = {"dpmpp_2m": 2, "dpmpp_2m_sde": 2, "dpmpp_3m": 3, "unipc": 2, "unipc_3": 3}
LOWERS_FINAL_ORDER = ("dpmpp_3m", "unipc", "unipc_3")  # the samplers that always lower the order at the end


def fill_defaults(path: Path, raw: Mapping[str, Any], samplers: Collection[str]) -> Keys:
    """The keys of a scheduler's file, with the class's defaults for those it leaves out.

    samplers: the names of the offered samplers; a value is refused only if one of them would give another image.

    Raises:
        CheckpointError: for a class, a key or a value that is not supported, by name.
    """
    name = raw.get("_class_name", next(iter(DEFAULTS)))
    if not isinstance(name, str) or name not in DEFAULTS:
        raise CheckpointError(
            f"{path}: _class_name = {abbreviate(name)} is not supported (supported: {', '.join(DEFAULTS)})"
        )
    known = {key for keys in DEFAULTS.values() for key in keys}.union(IGNORED_KEYS)
    if unknown := sorted(key for key in raw if not key.startswith("_") and key not in known):
        raise CheckpointError(f"{path}: key {abbreviate(unknown[0])} is not understood")
    own = {key: value for key, value in raw.items() if key in DEFAULTS[name]}
    others = {key: raw[key] for key in SINGLE_SAMPLER_KEYS if raw.get(key) is not None}
    content = {**ABSENT_KEYS, **DEFAULTS[name], **own, **others, "_class_name": name}
    if content["variance_type"] is None:
        content["variance_type"] = ABSENT_KEYS["variance_type"]
    if name == "TCDScheduler":  # diffusers' class has these keys and does not use them
        content |= {"clip_sample": False, "thresholding": False}
    if (sampler := matching_sampler(content)) in samplers:
        _check_same_image(path, content, str(sampler))
    return content


def matching_sampler(scheduler: Mapping[str, Any]) -> str | None:
    """The sampler that does the same as the scheduler's class; None if no sampler here does."""
    name, order = scheduler["_class_name"], scheduler.get("solver_order")
    if name == "DPMSolverMultistepScheduler":
        if scheduler["algorithm_type"] == "sde-dpmsolver++":
            return "dpmpp_2m_sde"
        return "dpmpp_3m" if order == 3 else "dpmpp_2m"
    if name == "UniPCMultistepScheduler":
        return "unipc_3" if order == 3 else "unipc"
    if name == "PNDMScheduler":
        return "plms" if scheduler["skip_prk_steps"] else None
    return SAMPLERS_BY_CLASS.get(name)


def _check_same_image(path: Path, scheduler: Mapping[str, Any], sampler: str) -> None:
    """Refuse a value that would give another image in diffusers than the sampler here."""
    name = scheduler["_class_name"]
    allowed = {
        key: values
        for key, values in SUPPORTED_KEY_VALUES.items()
        if key in DEFAULTS[name] and name != VARIANCE_EXPLODING
    }
    if sampler in SOLVER_ORDERS:
        allowed["solver_order"] = (SOLVER_ORDERS[sampler],)
    if sampler in LOWERS_FINAL_ORDER:
        allowed["lower_order_final"] = (True,)
    for key, values in allowed.items():
        if scheduler[key] not in values:
            listed = ", ".join(repr(value) for value in values if value is not None) or "null"
            raise CheckpointError(
                f"{path}: {key} = {abbreviate(scheduler[key])} is not supported (supported: {listed})"
            )
