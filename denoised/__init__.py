"""The Python client of a denoised server.

    from denoised import Client

    with Client() as client:
        for image in client.generate(label="sneaker", n=4, seed=7):
            image.save(...)

The client needs neither torch nor the server. Its modules are imported when one of these names is first used, because
importing any module of the server imports this package too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denoised.client import (
        DEFAULT_URL,
        AsyncClient,
        Client,
        ConnectionFailed,
        Event,
        FleetStatus,
        Frame,
        ImageFinished,
        InvalidResponse,
        Job,
        JobCanceled,
        JobError,
        JobFailed,
        JobFinished,
        JobImage,
        JobProgress,
        JobQueued,
        JobStarted,
        JobTiming,
        JobWarning,
        Model,
        ModelDefaults,
        ModelPromptGuide,
        QueueStatus,
        RequestFields,
        RequestRejected,
        ServerBusy,
        ServiceError,
        VerificationResult,
        WorkerStatus,
    )

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "Event",
    "FleetStatus",
    "Frame",
    "ImageFinished",
    "InvalidResponse",
    "Job",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "JobFinished",
    "JobImage",
    "JobProgress",
    "JobQueued",
    "JobStarted",
    "JobTiming",
    "JobWarning",
    "Model",
    "ModelDefaults",
    "ModelPromptGuide",
    "QueueStatus",
    "RequestFields",
    "RequestRejected",
    "ServerBusy",
    "ServiceError",
    "VerificationResult",
    "WorkerStatus",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("denoised.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
