"""The Python client. Import its names from `denoised`."""

from __future__ import annotations

from denoised.client.asynchronous import AsyncClient
from denoised.client.configuration import DEFAULT_URL
from denoised.client.errors import (
    ConnectionFailed,
    InvalidResponse,
    InvalidWebhook,
    JobCanceled,
    JobFailed,
    RequestRejected,
    ServerBusy,
    ServiceError,
)
from denoised.client.events import Event, Frame, ImageFinished, JobFinished, JobProgress, JobQueued, JobStarted
from denoised.client.fleet import FleetStatus, QueueStatus, WorkerStatus
from denoised.client.job import Job, JobArray, JobError, JobImage, JobTiming, JobWarning
from denoised.client.model import Model, ModelDefaults, ModelPromptGuide
from denoised.client.model_order import ModelOrder, ModelState
from denoised.client.synchronous import Client
from denoised.client.usage import KeyUsage, Quota
from denoised.client.verification import VerificationResult
from denoised.client.webhook import WebhookDelivery, verify_webhook
from denoised.jobs.control import Control, ControlFields
from denoised.jobs.lora import Lora, LoraFields
from denoised.jobs.request import RequestFields

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "Control",
    "ControlFields",
    "Event",
    "FleetStatus",
    "Frame",
    "ImageFinished",
    "InvalidResponse",
    "InvalidWebhook",
    "Job",
    "JobArray",
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
    "KeyUsage",
    "Lora",
    "LoraFields",
    "Model",
    "ModelDefaults",
    "ModelOrder",
    "ModelPromptGuide",
    "ModelState",
    "QueueStatus",
    "Quota",
    "RequestFields",
    "RequestRejected",
    "ServerBusy",
    "ServiceError",
    "VerificationResult",
    "WebhookDelivery",
    "WorkerStatus",
    "verify_webhook",
]
