"""What a job computes besides pictures: arrays of numbers, and a few numbers about the whole."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from denoised.jobs.record import ArrayFile
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.diffusion.likelihood_plan import bits, log_density_of_registers
from denoised.model.diffusion.single_level import EPSILON, X0, X_T
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.task_start import level_of

Arrays = Mapping[str, npt.NDArray[np.float32]]  # (C, h, w) by name


def arrays_of(request: SamplingRequest, model: ServedModel, registers: Tensor) -> Arrays:
    """The arrays of an image. registers: (R, C, h, w) after the last row of its plan."""
    found = registers.detach().to("cpu").float().numpy()
    if request.task == "noise":
        return {"x_t": found[0]}
    if request.task == "score":
        # ∇ log p_t(x_t) = −ε̂/σ (Song et al. 2021, arXiv:2011.13456).
        score = -found[EPSILON] / np.float32(level_of(request, model).sigma)
        return {"x_t": found[X_T], "x0": found[X0], "epsilon": found[EPSILON], "score": score}
    return {}


def encode_array(index: int, name: str, array: npt.NDArray[np.float32]) -> tuple[ArrayFile, bytes]:
    """The .npy file of an array."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    data = out.getvalue()
    return ArrayFile(index, name, list(array.shape), hashlib.sha256(data).hexdigest()), data


def result_at_level(request: SamplingRequest, model: ServedModel, arrays: Arrays) -> dict[str, Any]:
    """What a job says about a noise level and the arrays there."""
    level = level_of(request, model)
    norms = {f"{name}_norm": _norm(arrays[name]) for name in ("score", "epsilon") if name in arrays}
    level_members = {"t": level.t, "alpha": level.alpha, "sigma": level.sigma, "ratio": level.ratio}
    return {"space": space_of(model), "level": level_members, **norms}


def likelihood_result(request: SamplingRequest, model: ServedModel, registers: Sequence[Tensor]) -> dict[str, Any]:
    """The mean of the estimates of a likelihood, and its standard error.

    registers: of each estimate, in order.
    """
    dimensions = registers[0][0].numel()
    densities = [log_density_of_registers(own, model.schedule, request.steps) for own in registers]
    # Latents are not bytes: their bits are those of the density itself.
    widths = {"width": 1.0} if model.card.latent is not None else {}
    estimates = [bits(density, dimensions, **widths) for density in densities]
    mean = math.fsum(estimates) / len(estimates)
    squares = math.fsum((each - mean) ** 2 for each in estimates)
    error = math.sqrt(squares / (len(estimates) - 1) / len(estimates)) if len(estimates) > 1 else None
    return {
        "space": space_of(model),
        "dimensions": dimensions,
        "bits_per_dimension": mean,
        "standard_error": error,
        "estimates": estimates,
    }


def space_of(model: ServedModel) -> str:
    """What the arrays of a model are."""
    return "pixels" if model.card.latent is None else "latents"


def _norm(array: npt.NDArray[np.float32]) -> float:
    return math.sqrt(float(np.square(array.astype(np.float64)).sum()))
