"""`scheduler_config.json`: what each of diffusers' schedulers means by what it leaves out.

A file names a class, and the class decides the defaults: x̂_0 is clipped unless the file says
otherwise in DDPM and DDIM, and is not in the others; Heun's β are not DDPM's. Defaults equal
those of diffusers 0.42.

Schedulers are made from each other's files, so files carry keys of other classes. As in diffusers
they mean nothing there, but for the two that concern one of our samplers alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from denoised.model.errors import CheckpointError

Keys = dict[str, Any]

BETAS: Keys = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
HEUN_BETAS: Keys = {**BETAS, "beta_start": 0.00085, "beta_end": 0.012}
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
    **BETAS,
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

EXPLODING = "ScoreSdeVeScheduler"  # the one class here whose noise is not α² + σ² = 1: `model.networks.score_network`

# Every key of a class with its default.
DEFAULTS: dict[str, Keys] = {
    "DDPMScheduler": {**BETAS, **LEADING, **CLIPPED, **THRESHOLDING, **ZERO_SNR, "variance_type": "fixed_small"},
    "DDIMScheduler": {**BETAS, **LEADING, **CLIPPED, **THRESHOLDING, **ZERO_SNR, "set_alpha_to_one": True},
    "PNDMScheduler": {**BETAS, **LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
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
        **BETAS,
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
        **BETAS,
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
        **BETAS,
        **LINSPACE,
        **ZERO_SNR,
        **SPACED,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**BETAS, **LINSPACE, **ZERO_SNR},
    "HeunDiscreteScheduler": {**HEUN_BETAS, **LINSPACE, **SPACED, **CLIPPED, "clip_sample": False},
    "LMSDiscreteScheduler": {**BETAS, **LINSPACE, **SPACED},
    "KDPM2DiscreteScheduler": {**HEUN_BETAS, **LINSPACE, **SPACED},
    "KDPM2AncestralDiscreteScheduler": {**HEUN_BETAS, **LINSPACE, **SPACED},
    EXPLODING: {
        "num_train_timesteps": 2000,
        "snr": 0.15,
        "sigma_min": 0.01,
        "sigma_max": 1348.0,
        "sampling_eps": 1e-5,
        "correct_steps": 1,
    },
}
# What a class without the key does.
WITHOUT: Keys = {**LINSPACE, "clip_sample": False, "set_alpha_to_one": True, "variance_type": "fixed_small"}
# Keys that only `ddpm` and only `ddim` look at: honoured in the files of other classes too.
OF_ONE_SAMPLER = ("variance_type", "set_alpha_to_one")
# Keys that diffusers' first releases wrote and that say nothing of the noise.
FORGOTTEN = ("tensor_format",)

SAMPLER_OF = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "KDPM2DiscreteScheduler": "dpm_2",
    # By name alone: its steps are fixed here, not measured on a batch by `snr` and `correct_steps`.
    EXPLODING: "pc",
}
# Where another value of a class's key would draw another picture than the sampler that stands for the class.
ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
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
LOWERING = ("dpmpp_3m", "unipc", "unipc_3")  # lower the order towards the end, and have no way not to


def complete(path: Path, raw: Mapping[str, Any], samplers: Collection[str]) -> Keys:
    """Every key that a scheduler's file decides, with the class's defaults for those it leaves out.

    samplers: those there are; a key is refused only where it changes what one of them draws.

    Raises:
        CheckpointError: for a class, a key or a value that is not understood, by name.
    """
    name = raw.get("_class_name", next(iter(DEFAULTS)))
    if not isinstance(name, str) or name not in DEFAULTS:
        raise CheckpointError(f"{path}: _class_name = {name!r} is not supported (supported: {', '.join(DEFAULTS)})")
    known = {key for keys in DEFAULTS.values() for key in keys}.union(FORGOTTEN)
    if unknown := sorted(key for key in raw if not key.startswith("_") and key not in known):
        raise CheckpointError(f"{path}: key {unknown[0]!r} is not understood")
    own = {key: value for key, value in raw.items() if key in DEFAULTS[name]}
    others = {key: raw[key] for key in OF_ONE_SAMPLER if raw.get(key) is not None}
    content = {**WITHOUT, **DEFAULTS[name], **own, **others, "_class_name": name}
    if content["variance_type"] is None:
        content["variance_type"] = WITHOUT["variance_type"]
    if (sampler := sampler_of(content)) in samplers:
        _check_drawn_alike(path, content, str(sampler))
    return content


def sampler_of(scheduler: Mapping[str, Any]) -> str | None:
    """The sampler that does what a class does, if there is one."""
    name, order = scheduler["_class_name"], scheduler.get("solver_order")
    if name == "DPMSolverMultistepScheduler":
        if scheduler["algorithm_type"] == "sde-dpmsolver++":
            return "dpmpp_2m_sde"
        return "dpmpp_3m" if order == 3 else "dpmpp_2m"
    if name == "UniPCMultistepScheduler":
        return "unipc_3" if order == 3 else "unipc"
    return SAMPLER_OF.get(name)


def _check_drawn_alike(path: Path, scheduler: Mapping[str, Any], sampler: str) -> None:
    name = scheduler["_class_name"]
    allowed = {key: values for key, values in ELSEWHERE.items() if key in DEFAULTS[name] and name != EXPLODING}
    if sampler in SOLVER_ORDERS:
        allowed["solver_order"] = (SOLVER_ORDERS[sampler],)
    if sampler in LOWERING:
        allowed["lower_order_final"] = (True,)
    for key, values in allowed.items():
        if scheduler[key] not in values:
            listed = ", ".join(repr(value) for value in values if value is not None) or "null"
            raise CheckpointError(f"{path}: {key} = {scheduler[key]!r} is not supported (supported: {listed})")
