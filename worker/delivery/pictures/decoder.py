"""Decodes finished images in a thread of its own, so that neither the engine nor the publisher waits for a decoder.

Images of several jobs share a batch if they are of one model and one shape of latents. The model limits the batch by
its memory (`ServedModel.decode_limit`).
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.worker.delivery.attempt import AttemptState
from denoised.worker.delivery.pictures.encoding import Pixels
from denoised.worker.delivery.pictures.outputs import Picture, encode_image, encoding_failure
from denoised.worker.device_health import DeviceHealth
from denoised.worker.error_kinds import is_out_of_memory
from denoised.worker.errors import TrajectoryError

log = logging.getLogger("denoised.worker")

TURNS_PER_OLDEST = 4  # every fourth batch begins with the image that has waited longest
MAX_LIMITS = 256  # shapes for which a smaller batch is remembered

Deliver = Callable[[AttemptState, Sequence[Picture], TrajectoryError | None], None]
OnDecoded = Callable[[str, int, float], None]  # model, images, seconds
Key = tuple[str, tuple[int, ...]]  # model and shape of the latents


def no_record(model: str, images: int, seconds: float) -> None:
    """Forget how long a batch took."""


@dataclass(frozen=True, eq=False)
class FinishedImage:
    """An image after its last step.

    latents: x_0 (C, h, w).
    """

    attempt: AttemptState
    index: int
    latents: Tensor

    @property
    def key(self) -> Key:
        """Images of equal keys fit into one batch."""
        return self.attempt.request.model, tuple(self.latents.shape)


class DecoderThread(threading.Thread):
    """Decodes and encodes pictures, those of the jobs with the fewest first.

    deliver(attempt, pictures, error) is called, in this thread, for each job of a batch. error: of one of its images.
    on_decoded(model, images, seconds) is called, in this thread, after each batch.
    Images of an attempt that is over are dropped.
    """

    def __init__(self, deliver: Deliver, on_decoded: OnDecoded = no_record, device: DeviceHealth | None = None) -> None:
        """device: by default one that is always sound."""
        super().__init__(name="decoder", daemon=True)
        self._deliver = deliver
        self._on_decoded = on_decoded
        self._device = device or DeviceHealth()
        self._changed = threading.Condition()  # guards the attributes below, except the last two
        self._waiting: list[FinishedImage] = []  # in order of arrival
        self._batch: list[FinishedImage] = []
        self._closed = False
        self._turns = itertools.count(1)
        self._limits: dict[Key, int] = {}  # where a larger batch has run out of memory

    def submit(self, attempt: AttemptState, finished: Mapping[int, Tensor]) -> None:
        """Add images of a job: x_0 (C, h, w) by index. Does not wait."""
        with self._changed:
            self._waiting += [FinishedImage(attempt, index, latents) for index, latents in finished.items()]
            self._changed.notify_all()

    def wait(self, timeout: float) -> None:
        """Wait until all images are delivered, but at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._batch, timeout)

    def close(self) -> None:
        """Begin no further batch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        while batch := self._take():
            try:
                self._decode(batch)
            except Exception as error:
                log.exception("pictures not delivered")
                self._fail(batch, TrajectoryError("internal_error", f"{type(error).__name__}: {error}"))
            with self._changed:
                self._batch = []
                self._changed.notify_all()

    def _take(self) -> list[FinishedImage]:
        """Wait for images, and take the next batch; [] once the decoder is closed."""
        with self._changed:
            while True:
                self._waiting = [image for image in self._waiting if not image.attempt.over]
                self._changed.notify_all()
                if self._closed:
                    return []
                if self._waiting:
                    break
                self._changed.wait()
            self._batch = self._choose()
            chosen = set(map(id, self._batch))
            self._waiting = [image for image in self._waiting if id(image) not in chosen]
            return self._batch

    def _choose(self) -> list[FinishedImage]:
        """The images of the jobs that wait for the fewest pictures, the older of two jobs first, as many as fit."""
        pictures = Counter(image.attempt.id for image in self._waiting)
        first = {image.attempt.id: k for k, image in reversed(list(enumerate(self._waiting)))}
        order = sorted(self._waiting, key=lambda image: (pictures[image.attempt.id], first[image.attempt.id]))
        leader = self._waiting[0] if next(self._turns) % TURNS_PER_OLDEST == 0 else order[0]
        batch = [leader, *(image for image in order if image is not leader and image.key == leader.key)]
        return batch[: self._limit(leader)]

    def _limit(self, image: FinishedImage) -> int:
        channels, height, width = image.latents.shape
        limit = image.attempt.model.decode_limit((channels, height, width))
        return max(1, min(limit, self._limits.get(image.key, limit)))

    def _decode(self, batch: Sequence[FinishedImage]) -> None:
        """Decode and deliver a batch. If that fails, each half of it is decoded again, so that only the images that
        cause it fail."""
        started = time.perf_counter()
        try:
            pictures = batch[0].attempt.model.decode(torch.stack([image.latents for image in batch]))
            self._record(batch, time.perf_counter() - started)
        except Exception as raised:
            error = raised.with_traceback(None)  # its frames would keep the feature maps alive
        else:
            self._deliver_all(batch, list(pictures))
            return
        if not self._device.is_sound_after(error):
            return  # the engine's thread returns the jobs to their queue
        if len(batch) == 1:
            self._fail(batch, _as_trajectory_error(error))
            return
        middle = len(batch) // 2
        if is_out_of_memory(error):
            self._remember(batch[0].key, middle)
        for half in (batch[:middle], batch[middle:]):
            self._decode(half)

    def _record(self, batch: Sequence[FinishedImage], seconds: float) -> None:
        self._on_decoded(batch[0].key[0], len(batch), seconds)
        for attempt in {id(image.attempt): image.attempt for image in batch}.values():
            attempt.decoding_seconds += seconds

    def _remember(self, key: Key, limit: int) -> None:
        """Decode at most `limit` images of a key at once from now on."""
        if len(self._limits) >= MAX_LIMITS:
            self._limits.clear()
        self._limits[key] = limit
        log.warning("out of memory: fewer pictures are decoded at once", extra={"model": key[0], "images": limit})

    def _deliver_all(self, batch: Sequence[FinishedImage], pictures: Sequence[Pixels]) -> None:
        """Encode the pictures of a batch, and deliver those of each job together."""
        by_attempt: dict[int, dict[int, Pixels]] = {}
        attempts = {id(image.attempt): image.attempt for image in batch}
        for image, pixels in zip(batch, pictures, strict=True):
            by_attempt.setdefault(id(image.attempt), {})[image.index] = pixels
        for key, own in by_attempt.items():
            self._deliver_own(attempts[key], own)

    def _deliver_own(self, attempt: AttemptState, pictures: Mapping[int, Pixels]) -> None:
        request, numerics = attempt.request, attempt.numerics
        try:
            encoded = [encode_image(index, pixels, request, numerics) for index, pixels in pictures.items()]
        except Exception as error:
            log.exception("picture could not be encoded", extra=attempt.log_fields)
            self._deliver(attempt, [], encoding_failure(error))
        else:
            self._deliver(attempt, encoded, None)

    def _fail(self, batch: Sequence[FinishedImage], error: TrajectoryError) -> None:
        for attempt in {id(image.attempt): image.attempt for image in batch}.values():
            self._deliver(attempt, [], error)


def _as_trajectory_error(error: Exception) -> TrajectoryError:
    """What to report when decoding a single image raised `error`."""
    if is_out_of_memory(error):
        return TrajectoryError("out_of_memory", "the device has not enough memory to decode one image of this model")
    return TrajectoryError("decoding_failed", f"{type(error).__name__}: {error}")
