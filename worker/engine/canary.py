"""A canary of a model: a fixed input, and what the network gave for it when the worker started."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from denoised.model.serving.conditioning import Conditioning
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.batch_size import job_of_defaults
from denoised.worker.engine.trajectory import trajectories
from denoised.worker.errors import DeviceError

log = logging.getLogger("denoised.worker")


@dataclass(frozen=True)
class Canary:
    """One image of a model at its first noise level, at the card's defaults. Its inputs are kept on the CPU.

    Attributes:
        x: (1, C, H, W) x_T of seed 0.
        level: (3, 1) t, α and σ.
        conditioning: A batch of one.
        expected: The bytes of x̂_0 and ε̂; None on a device that does not repeat its own bits.
    """

    model: ServedModel
    x: Tensor
    level: Tensor
    conditioning: Conditioning
    expected: bytes | None = None

    @classmethod
    def record(cls, model: ServedModel) -> Canary | None:
        """Evaluate the canary of a model that was just loaded; None, with a warning, if that fails."""
        try:
            (image,) = trajectories(job_of_defaults(model, 1), model)
            level = torch.tensor([[image.plan.t[0]], [image.plan.alpha[0]], [image.plan.sigma[0]]], dtype=torch.float32)
            cpu = torch.device("cpu")
            canary = cls(model, image.registers[:1].to(cpu), level, image.conditioning.to(cpu))
            expected = canary.evaluate()
            # Kernels outside of recorded graphs may add in another order each time.
            is_repeated = model.device.type == "cpu" or canary.evaluate() == expected
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.warning("the device is not checked with this model", extra={"model": model.card.name, "reason": reason})
            return None
        return cls(model, canary.x, level, canary.conditioning, expected if is_repeated else None)

    @torch.inference_mode()
    def evaluate(self) -> bytes:
        """The bytes of x̂_0 and ε̂."""
        device = self.model.device
        t, alpha, sigma = self.level.to(device).unbind(0)
        estimate = self.model.denoise(self.x.to(device), t, alpha, sigma, self.conditioning.to(device))
        return b"".join(part.cpu().contiguous().numpy().tobytes() for part in (estimate.x0, estimate.epsilon))

    def check(self) -> None:
        """Evaluate the canary again.

        Raises:
            DeviceError: if the device fails at it, or gives another result.
        """
        name, device = self.model.card.name, self.model.device
        try:
            found = self.evaluate()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            text = f"device {device} does not evaluate {name!r} any more ({type(error).__name__}: {reason})"
            raise DeviceError(text) from None
        if self.expected not in (None, found):
            text = f"device {device} computes another result for {name!r} than when this worker started"
            raise DeviceError(text, has_wrong_results=True)
