"""Signatures of webhooks, made by the server and verified by the client."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from denoised import InvalidWebhook, verify_webhook
from denoised.app.http.job_object import job_object
from denoised.app.webhooks.signature import caller_secret, message_id, signed_headers
from denoised.jobs.record import JobRecord

SECRET = caller_secret("a secret of the server, long enough", "alice")
OTHER = caller_secret("another secret of the server, newer", "alice")


@pytest.fixture
def body(request_of: Any) -> bytes:
    record = JobRecord("ab12", "alice", request_of(), 1.0, status="succeeded", finished_at=2.0)
    return json.dumps(job_object(record)).encode()


def sign(body: bytes, *secrets: str, age: float = 0) -> dict[str, str]:
    return signed_headers(message_id("ab12"), int(time.time() - age), body, secrets or (SECRET,))


def test_a_signature_is_that_of_the_reference_implementation() -> None:
    """The example of the tests of https://github.com/standard-webhooks/standard-webhooks."""
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_client_reads_the_job_of_a_webhook_that_the_server_signed(body: bytes) -> None:
    job = verify_webhook(body, sign(body), SECRET)
    assert (job.id, job.status, job.seed) == ("ab12", "succeeded", 7)


def test_the_names_of_headers_may_be_in_any_case(body: bytes) -> None:
    headers = {name.title(): value for name, value in sign(body).items()}
    assert verify_webhook(body, headers, SECRET).id == "ab12"


@pytest.mark.parametrize("known", [[SECRET], [OTHER], [OTHER, SECRET]])
def test_while_the_secret_changes_either_verifies(body: bytes, known: list[str]) -> None:
    assert verify_webhook(body, sign(body, OTHER, SECRET), known).id == "ab12"


def test_secrets_of_two_callers_differ() -> None:
    server = "a secret of the server, long enough"
    assert len({caller_secret(server, owner) for owner in ("", "alice", "bob")}) == 3
    assert caller_secret(server, "alice") == SECRET


def test_nothing_but_what_was_signed_is_accepted(body: bytes) -> None:
    good = sign(body)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(body + b" ", good, SECRET)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(body, good | {"webhook-id": "msg_other"}, SECRET)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(body, good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}, SECRET)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(body, good, OTHER)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook(body, good | {"webhook-signature": "v1a,AAAA v1,&& v1, nothing"}, SECRET)
    for name in good:
        with pytest.raises(InvalidWebhook, match=f"no header {name}"):
            verify_webhook(body, {other: value for other, value in good.items() if other != name}, SECRET)


@pytest.mark.parametrize("age", [400, -400])
def test_an_old_webhook_is_refused_and_so_is_one_of_the_future(body: bytes, age: float) -> None:
    with pytest.raises(InvalidWebhook, match="differs by"):
        verify_webhook(body, sign(body, age=age), SECRET)
    assert verify_webhook(body, sign(body, age=age), SECRET, tolerance=1000).id == "ab12"


def test_a_text_that_is_no_secret_is_an_error_of_the_program(body: bytes) -> None:
    with pytest.raises(ValueError, match="whsec_ and base64"):
        verify_webhook(body, sign(body), "whsec_no base64!")
