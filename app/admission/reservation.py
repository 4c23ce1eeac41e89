"""How much an accepted job may take of Redis' memory, and of the place for results: its record, events, frames, resume
point and pictures.

An upper estimate, made before the job is accepted. Redis cannot set memory aside, so admission adds up what the jobs
that are not over may still write (`jobs.redis.memory`).
"""

from __future__ import annotations

from denoised.jobs.array_reading import FLOAT_BYTES
from denoised.jobs.request_pictures import pictures_of
from denoised.jobs.sampling_request import SamplingRequest
from denoised.jobs.store.scripts.job_functions import EVENT_CAP
from denoised.jobs.task_request import ARRAY
from denoised.model.serving.card import ModelCard

RECORD_BYTES = 4096  # the record, RQ's job and lease
EVENT_BYTES = 300  # one progress event in a stream
REFERENCE_BYTES = 600  # of a value outside Redis: what refers to it, and its entries in the ledger
FRAME_BYTES = 512  # a frame's event and the head of its PNG, besides its pixels
PICTURE_BYTES = 2048  # a picture's file head, its parameters, and its share of the record
INCOMPRESSIBLE = 1.02  # a PNG of noise is a little larger than its pixels
REGISTERS = 4  # float32 tensors of an image's size that a resume point holds at most
TASK_REGISTERS = 6  # likewise, of an integration
ARRAYS = {"generate": 0, "noise": 1, "score": 4, "likelihood": 0}  # of float32 that an image has besides its picture
ARRAY_HEAD_BYTES = 512  # of an .npy file, and the array's share of the record
MAX_RESUME_IMAGE_BYTES = 4 << 20  # larger pictures are made from latents, which are smaller


def job_bytes(request: SamplingRequest, card: ModelCard, *, large_values: bool = True) -> int:
    """The bytes that a job may write to Redis. large_values: whether pictures, frames and resume points are there.

    Frames are counted for noise, which hardly compresses: most of them show some. Events beyond the cap of a job's
    stream replace older ones.
    """
    pixels = _pixels(request, card)
    given = pictures_of(vars(request))
    inputs = FLOAT_BYTES * pixels * (ARRAY in given) + len(given) * int(pixels * INCOMPRESSIBLE + PICTURE_BYTES)
    events = min(request.run_steps * max(1, request.stages) + request.n + 4, EVENT_CAP) * EVENT_BYTES
    frames = _frames(request)
    if not large_values:
        values = request.n * (1 + ARRAYS[request.task]) + 1
        return RECORD_BYTES + events + frames * (EVENT_BYTES + REFERENCE_BYTES) + values * REFERENCE_BYTES + inputs
    registers = TASK_REGISTERS if request.task == "likelihood" else REGISTERS
    resume = request.n * min(4 * registers * pixels, MAX_RESUME_IMAGE_BYTES)
    return RECORD_BYTES + events + frames * _frame_bytes(pixels) + resume + picture_bytes(request, card) + inputs


def picture_bytes(request: SamplingRequest, card: ModelCard) -> int:
    """The bytes of the pictures and arrays of a job."""
    pixels = _pixels(request, card)
    pictures = request.n * int(pixels * INCOMPRESSIBLE + PICTURE_BYTES)
    return pictures + request.n * ARRAYS[request.task] * (4 * pixels + ARRAY_HEAD_BYTES)


def _pixels(request: SamplingRequest, card: ModelCard) -> int:
    return (request.width or card.width) * (request.height or card.height) * card.channels


def _frames(request: SamplingRequest) -> int:
    if not request.preview_every:
        return 0
    kinds = {"both": 2, "all": 3}.get(request.preview, 1)
    return min(request.n * (request.run_steps // request.preview_every) * kinds, EVENT_CAP)


def _frame_bytes(pixels: int) -> int:
    """A frame in its event: base64 takes four bytes for three."""
    return int((pixels * INCOMPRESSIBLE + FRAME_BYTES) * 4 / 3) + EVENT_BYTES
