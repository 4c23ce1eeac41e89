"""Pixels for the client: preview frames and finished pictures, decoded and encoded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from denoised.jobs.record import Image, image_url
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.protocol import ServedModel
from denoised.worker.delivery.pictures.encoding import Pixels, encode, encode_frame
from denoised.worker.engine.turn import Advanced
from denoised.worker.error_kinds import is_out_of_memory
from denoised.worker.errors import TrajectoryError

NOISE_RANGE = 3.0  # of ε̂ in a frame: −3 is black, 3 is white; 0.3 % of normal noise is beyond
KINDS = {"both": ("x0", "xt"), "all": ("x0", "xt", "eps")}  # of frames, by what a request names; others name one

Picture = tuple[Image, bytes]
"""A finished image and its file."""


def frame_events(item: Advanced, request: SamplingRequest, model: ServedModel) -> list[dict[str, Any]]:
    """The `frame` events that a request asks for at this step; [] when it asks for none."""
    every = request.preview_every
    if not every or not item.completed or item.step % every:
        return []
    tensors = {"x0": item.denoised, "xt": item.x_t, "eps": item.epsilon / NOISE_RANGE}
    kinds = KINDS.get(request.preview, (request.preview,))
    return [
        {
            "type": "frame",
            "image": item.trajectory.index,
            "step": item.step,
            "steps": request.run_steps,
            "t": item.t,
            "sigma": item.sigma,
            "kind": kind,
            "media_type": "image/png",
            "data": base64.b64encode(encode_frame(model.preview(tensors[kind][None])[0])).decode(),
        }
        for kind in kinds
    ]


def decode_finished(items: Sequence[Advanced], model: ServedModel) -> dict[int, Pixels]:
    """The images that finished in a turn, by index, (H, W, C) each; decoded as one batch."""
    results = {item.trajectory.index: item.result for item in items if item.result is not None}
    if not results:
        return {}
    return dict(zip(results, model.decode(torch.stack(list(results.values()))), strict=True))


def encode_image(index: int, pixels: Pixels, request: SamplingRequest, numerics: str) -> Picture:
    """The file of a finished image."""
    data = encode(pixels, request.format, request.parameters(index, numerics))
    image = Image(
        index=index,
        seed=request.seed + index,
        width=pixels.shape[1],
        height=pixels.shape[0],
        format=request.format,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return image, data


def encoding_failure(error: Exception) -> TrajectoryError:
    """What to report when a picture could not be encoded."""
    if is_out_of_memory(error):
        return TrajectoryError("out_of_memory", "the worker has not enough memory to encode a picture of this job")
    return TrajectoryError("encoding_failed", f"{type(error).__name__}: {error}")


def image_event(job: str, image: Image) -> dict[str, Any]:
    """The `image` event of a finished image."""
    return {
        "type": "image",
        "index": image.index,
        "seed": image.seed,
        "sha256": image.sha256,
        "url": image_url(job, image.index),
    }
