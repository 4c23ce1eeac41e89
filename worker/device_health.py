"""Whether a worker's device still computes: an error that may come from the device has its canaries evaluated again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from denoised.worker.engine.canary import Canary
from denoised.worker.error_kinds import may_be_the_devices
from denoised.worker.errors import DeviceError

FAILED_JOBS = 3  # in a row, after which the canaries are evaluated
ANSWER_SECONDS = 30.0  # that another thread waits for the engine's, which evaluates them


class DeviceHealth:
    """Evaluates the canaries in the engine's thread, when it or another thread suspects the device.

    canaries: of the served models; without any, the device is always sound.
    wake(): called when another thread asks, so that an idle engine answers.

    Attributes:
        failure: Why the device cannot be used any more; None while it is sound.
    """

    def __init__(self, canaries: Sequence[Canary] = (), wake: Callable[[], None] = lambda: None) -> None:
        self.failure: DeviceError | None = None
        self._canaries = {canary.model.card.name: canary for canary in canaries}
        self._wake = wake
        self._changed = threading.Condition()  # guards the attributes below
        self._asked = 0  # requests by other threads so far
        self._answered = 0
        self._closed = False
        self._failed: set[str] = set()  # jobs since the last that succeeded

    # The engine's thread

    def replace(self, model: str, canary: Canary | None) -> None:
        """The canary of a model that was loaded; None if it was removed, or cannot be checked."""
        others = {name: each for name, each in self._canaries.items() if name != model}
        self._canaries = others if canary is None else {**others, model: canary}

    def check(self, model: str | None = None) -> None:
        """Evaluate the canary of a model, or without a name all of them.

        Raises:
            DeviceError: if the device is not sound, now or at an earlier call.
        """
        with self._changed:
            asked = self._asked
            self._failed.clear()
        try:
            for name, canary in self._canaries.items():
                if self.failure is None and model in (None, name):
                    canary.check()
        except DeviceError as error:
            self.failure = error
        if model is None or self.failure is not None:
            with self._changed:
                self._answered = asked
                self._changed.notify_all()
        if self.failure is not None:
            raise self.failure

    def answer(self, failed: Iterable[str] = ()) -> None:
        """Evaluate the canaries if another thread has asked, or if `FAILED_JOBS` jobs in a row have failed.

        failed: jobs that fail now.

        Raises:
            DeviceError: see `check`.
        """
        with self._changed:
            self._failed.update(failed)
            is_due = self._asked > self._answered or len(self._failed) >= FAILED_JOBS
        if is_due:
            self.check()

    def close(self) -> None:
        """Have nobody wait for an answer any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Other threads

    def is_sound_after(self, error: BaseException) -> bool:
        """Whether an error is not the device's: of another kind, or the canaries still give what they gave.

        Waits for the engine's thread; without an answer in `ANSWER_SECONDS`, the device counts as sound.
        """
        if self.failure is not None:
            return False
        if not self._canaries or not may_be_the_devices(error):
            return True
        with self._changed:
            self._asked += 1
            own = self._asked
            self._wake()
            self._changed.wait_for(lambda: self._answered >= own or self._closed, ANSWER_SECONDS)
        return self.failure is None

    def record_success(self) -> None:
        """A job has succeeded."""
        with self._changed:
            self._failed.clear()
