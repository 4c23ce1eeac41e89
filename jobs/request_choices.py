"""The fields of a request that take one of a few values: the values, and what each of them means.

The API page, the form of the page and the terminal show these meanings. Imports only the standard library, because the
client shares this file with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Spacing = Literal[
    "leading", "trailing", "linspace", "sgm_uniform", "karras", "exponential", "beta", "edm", "geometric",
    "ays_sd", "ays_sdxl", "learned",
]  # fmt: skip
Format = Literal["png", "webp", "jpeg"]
PreviewKind = Literal["x0", "xt", "both", "all"]
Priority = Literal["low", "normal", "high"]

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")  # the others are of noise levels between timesteps
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: Mapping[str, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}

SPACINGS: Mapping[str, str] = {
    "leading": "timesteps of training in equal strides, from 0 up; with few steps it starts below the last timestep",
    "trailing": "timesteps of training in equal strides, from the last one down",
    "linspace": "timesteps of training, evenly from the last one to 0",
    "sgm_uniform": "uniform in time from the last timestep toward 0, between timesteps",
    "karras": "Karras et al. 2022: dense at low noise",
    "exponential": "uniform in the logarithm of the noise level",
    "beta": "quantiles of a beta distribution: dense at both ends",
    "edm": "as karras, from 80 to 0.002 as far as the model goes",
    "geometric": "as exponential, from 40 to 0.1; good with few steps",
    "ays_sd": "Align Your Steps (Sabour et al. 2024), optimized for Stable Diffusion 1.x in 10 steps",
    "ays_sdxl": "Align Your Steps (Sabour et al. 2024), optimized for Stable Diffusion XL in 10 steps",
    "learned": "fitted to the model for a sampler and a number of steps; only those that its card lists",
}
FORMAT_MEANINGS: Mapping[str, str] = {
    "png": "lossless, and carries its request, so it can be verified",
    "webp": "lossless and smaller, without the request",
    "jpeg": "lossy, for programs that read nothing else",
}
PREVIEWS: Mapping[str, str] = {
    "x0": "the prediction of the finished picture",
    "xt": "the noisy picture that the network sees",
    "both": "x0 and xt, a frame of each",
    "all": "x0, xt and eps, the noise that the network predicts",
}
PRIORITIES: Mapping[str, str] = {
    "low": "after all your other jobs that wait",
    "normal": "in the order of arrival, before those of low priority",
    "high": "before all your other jobs that wait; the jobs of others are not affected",
}
