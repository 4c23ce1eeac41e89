"""The result of `POST /verify`."""

from __future__ import annotations

from dataclasses import dataclass

from denoised.client.resource import Raw, Resource


@dataclass(frozen=True)
class VerificationResult(Resource):
    """An image compared with the one that its own request generates now.

    match: whether the bytes are equal.
    pixels_match: whether the pixels are equal.
    reason: why the bytes differ; None if they do not.
    request: the request that the image carries.
    job: id of the job that generated the image again.
    """

    match: bool
    pixels_match: bool
    reason: str | None
    sha256: str
    expected_sha256: str
    request: Raw
    job: str
