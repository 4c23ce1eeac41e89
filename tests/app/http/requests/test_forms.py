"""A form is read as it was meant, or refused: nothing in it is guessed or left out."""

from __future__ import annotations

import time

import pytest
from starlette.testclient import TestClient

END = b"--XX--\r\n"


def part(name: str, content: bytes) -> bytes:
    return b'--XX\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)


def post(api: TestClient, body: bytes, parameters: str = "", path: str = "/generate") -> tuple[int, str]:
    headers = {"Content-Type": f"multipart/form-data; boundary=XX{parameters}"}
    answer = api.post(path, content=body, headers=headers)
    return answer.status_code, answer.json().get("detail", "")


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_a_form_that_ends_early_is_refused(cut: int, api: TestClient) -> None:
    """Its last part would be missing, and the server would draw a seed in place of the one that was sent."""
    body = part("steps", b"2") + part("seed", b"7") + b"--XX--"
    assert post(api, body)[0] == 202
    assert post(api, body[:-cut])[0] == 400


def test_what_follows_the_last_boundary_is_ignored(api: TestClient) -> None:
    assert post(api, part("seed", b"7") + END + b"more")[0] == 202


@pytest.mark.parametrize("path", ["/generate", "/v1/images/edits", "/verify"])
def test_a_text_that_is_not_utf_8_is_refused(path: str, api: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    answer = api.post(path, content=part("label", b"caf\xe9") + END, headers=headers)
    assert answer.status_code == 400
    assert "the part 'label' is not valid UTF-8" in answer.text


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"Utf-8"'])
def test_utf_8_may_be_named(charset: str, api: TestClient) -> None:
    assert post(api, part("label", "café".encode()) + END, f"; charset={charset}")[1].startswith('label: "café" is not')


@pytest.mark.parametrize("charset", ["punycode", "idna", "latin-1", "utf-16", "zlib", "nonsense", "x" * 3000, '"\\\\"'])
def test_another_charset_is_refused_at_once(charset: str, api: TestClient) -> None:
    """Python decodes 400,000 characters of punycode in a minute, in which the server did nothing else."""
    started = time.process_time()
    status, detail = post(api, part("label", b"abc-" + b"b" * 400_000) + END, f"; charset={charset}")
    assert (status, detail.partition(" of ")[2]) == (400, "the form is not supported (supported: utf-8)")
    assert time.process_time() - started < 1.0


def test_a_repeated_name_in_the_json_of_a_part_is_refused(api: TestClient) -> None:
    assert post(api, part("loras", b'[{"name": "a", "weight": 1, "weight": 2}]') + END) == (
        422,
        "weight: was given 2 times (allowed: once)",
    )


def test_json_of_a_part_has_the_limit_of_other_json(api: TestClient) -> None:
    numbers = b"[" + b"1," * 200_000 + b"1]"
    status, detail = post(api, part("sigmas", numbers) + END)
    assert status == 422
    assert detail.startswith('sigmas: "[1,1,1,')
