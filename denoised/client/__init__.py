"""A client of the service, for Python programs and for the command line. Imports no torch.

from denoised.client import Client

with Client() as client:
    for picture in client.generate(label="sneaker", n=4, seed=7):
        picture.save(...)
"""

from __future__ import annotations

from denoised.client.asynchronous import AsyncClient
from denoised.client.errors import Busy, JobCanceled, JobFailed, Misunderstood, Refused, ServiceError, Unreachable
from denoised.client.exchange import DEFAULT_URL
from denoised.client.results import (
    Ended,
    Event,
    Fleet,
    Frame,
    Job,
    JobImage,
    Made,
    Model,
    Progress,
    Queued,
    Started,
    Verification,
    Waiting,
    Worker,
)
from denoised.client.synchronous import Client
from denoised.jobs.request import RequestFields

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Busy",
    "Client",
    "Ended",
    "Event",
    "Fleet",
    "Frame",
    "Job",
    "JobCanceled",
    "JobFailed",
    "JobImage",
    "Made",
    "Misunderstood",
    "Model",
    "Progress",
    "Queued",
    "Refused",
    "RequestFields",
    "ServiceError",
    "Started",
    "Unreachable",
    "Verification",
    "Waiting",
    "Worker",
]
