"""The operations of the HTTP API as flows (`denoised.client.api_call`): what each one sends and returns."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from denoised.client.api_call import ApiCall, Flow
from denoised.client.errors import InvalidResponse, RequestRejected, ServerBusy, ServiceError
from denoised.client.fleet import FleetStatus
from denoised.client.job import Job
from denoised.client.model import Model
from denoised.client.model_order import ModelOrder
from denoised.client.pictures import encode_picture_fields, form_of, read
from denoised.client.responses import json_body, require_member
from denoised.client.retries import RetryPolicy
from denoised.client.usage import KeyUsage
from denoised.client.verification import VerificationResult
from denoised.client.webhook import WebhookDelivery
from denoised.jobs.control import control_picture
from denoised.jobs.request import PictureSource, RequestFields
from denoised.jobs.task_request import PictureTask

GATEWAY_TIMEOUT = 504  # the server's status for a result that is not ready yet
VERIFY_WAIT = 30  # seconds that the server waits in one `POST /verify`
PAGE_SIZE = 100  # largest page of jobs


class Exchange:
    """The operations of one server.

    retries: sends the calls.
    """

    def __init__(self, retries: RetryPolicy) -> None:
        self._retries = retries

    def submit(self, label: str | int | None, fields: RequestFields, key: str | None) -> Flow[Job]:
        """`POST /generate`. key: the idempotency key; None = a new one, so that a retry never creates a second job."""
        if label is not None and "label" in fields:
            raise TypeError("the label was given twice, by position and by name")
        content = _to_json({"label": label, **encode_picture_fields(fields)})
        headers = {"Content-Type": "application/json", "Idempotency-Key": key or uuid.uuid4().hex}
        return (yield from self._job(ApiCall("POST", "/generate", headers=headers, content=content)))

    def task(self, task: PictureTask, image: PictureSource | None, fields: Mapping[str, Any]) -> Flow[Job]:
        """`POST /noise`, `/score` or `/likelihood`: the job, which may not be finished yet."""
        content = _to_json(encode_picture_fields({**fields, "image": image}))
        headers = {"Content-Type": "application/json", "Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex}
        return (yield from self._job(ApiCall("POST", f"/{task}", headers=headers, content=content)))

    def job(self, job_id: str) -> Flow[Job]:
        """`GET /jobs/{id}`."""
        return (yield from self._job(ApiCall("GET", job_path(job_id))))

    def cancel(self, job_id: str) -> Flow[Job]:
        """`DELETE /jobs/{id}`."""
        return (yield from self._job(ApiCall("DELETE", job_path(job_id))))

    def page(self, cursor: str | None, limit: int, status: str | None) -> Flow[tuple[list[Job], str | None]]:
        """`GET /jobs`: one page of jobs, optionally of one status, and the cursor of the next page."""
        given = {"limit": str(min(limit, PAGE_SIZE)), "cursor": cursor, "status": status}
        params = {name: value for name, value in given.items() if value}
        answer = yield from self._json(ApiCall("GET", "/jobs", params=params))
        return [Job.from_json(job) for job in require_member(answer, "jobs")], require_member(answer, "next_cursor")

    def models(self) -> Flow[list[Model]]:
        """`GET /models`."""
        answer = yield from self._json(ApiCall("GET", "/models"))
        if not isinstance(answer, list):
            raise InvalidResponse("the server's answer is not a list of models: is it denoised?")
        return [Model.from_json(model) for model in answer]

    def order_model(self, method: str, name: str, action: str = "") -> Flow[ModelOrder]:
        """`PUT /models/{name}`, `DELETE /models/{name}`, or `POST /models/{name}/reload`. action: what follows."""
        path = f"/models/{quote(name, safe='')}{action}"
        return ModelOrder.from_json((yield from self._json(ApiCall(method, path))))

    def workers(self) -> Flow[FleetStatus]:
        """`GET /workers`."""
        return FleetStatus.from_json((yield from self._json(ApiCall("GET", "/workers"))))

    def usage(self) -> Flow[KeyUsage]:
        """`GET /usage`."""
        return KeyUsage.from_json((yield from self._json(ApiCall("GET", "/usage"))))

    def usage_of_all_keys(self) -> Flow[list[KeyUsage]]:
        """`GET /usage/keys`."""
        answer = yield from self._json(ApiCall("GET", "/usage/keys"))
        return [KeyUsage.from_json(usage) for usage in require_member(answer, "keys")]

    def webhook(self, job_id: str) -> Flow[WebhookDelivery]:
        """`GET /jobs/{id}/webhook`."""
        return WebhookDelivery.from_json((yield from self._json(ApiCall("GET", f"{job_path(job_id)}/webhook"))))

    def webhook_secrets(self) -> Flow[list[str]]:
        """`GET /webhooks/secrets`."""
        answer = yield from self._json(ApiCall("GET", "/webhooks/secrets"))
        return [str(secret) for secret in require_member(answer, "secrets")]

    def download(self, path: str, params: Mapping[str, str] | None = None) -> Flow[bytes]:
        """The bytes at a path of this server. Absolute URLs are rejected, since the API key would be sent along."""
        if not path.startswith("/") or path.startswith("//"):
            raise InvalidResponse(f"{path[:80]!r} is not a path of {self._retries.url}")
        return (yield from self._retries.send(ApiCall("GET", path, params=params or {}))).content

    def animation(self, job_id: str, format: str, kind: str | None) -> Flow[bytes]:
        """`GET /jobs/{id}/animation`."""
        params = {"format": format, **({"kind": kind} if kind else {})}
        return (yield from self.download(f"{job_path(job_id)}/animation", params))

    def verify(
        self,
        picture: bytes,
        image: PictureSource | None = None,
        mask: PictureSource | None = None,
        controls: Sequence[PictureSource] = (),
    ) -> Flow[VerificationResult]:
        """`POST /verify`, repeated until the result is ready. The idempotency key makes every repeat wait for the same
        job. image, mask, controls: those that the picture was made from."""
        key = uuid.uuid4().hex
        named = {"image": image, "mask": mask, **{control_picture(k): source for k, source in enumerate(controls)}}
        inputs = {name: read(source) for name, source in named.items() if source is not None}
        content, media_type = form_of({"picture": picture, **inputs}) if inputs else (picture, "image/png")
        while True:
            headers = {"Content-Type": media_type, "Prefer": f"wait={VERIFY_WAIT}", "Idempotency-Key": key}
            call = ApiCall("POST", "/verify", headers=headers, content=content, timeout=VERIFY_WAIT + 30)
            try:
                return VerificationResult.from_json((yield from self._json(call)))
            except ServerBusy as error:
                if error.status != GATEWAY_TIMEOUT:
                    raise

    def _job(self, call: ApiCall) -> Flow[Job]:
        return Job.from_json((yield from self._json(call)))

    def _json(self, call: ApiCall) -> Flow[Any]:
        return json_body((yield from self._retries.send(call)))


def job_path(job_id: str) -> str:
    """The path of a job.

    Raises:
        RequestRejected: if the text cannot be a job id; such a text might lead to another path.
    """
    if not job_id.isascii() or not job_id.isalnum():
        raise RequestRejected(f"job {job_id[:80]!r} not found", 404)
    return f"/jobs/{job_id}"


def _to_json(body: Mapping[str, Any]) -> bytes:
    """A request body without the fields that are None."""
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(given, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ServiceError(f"the request cannot be sent as JSON ({error})") from error
