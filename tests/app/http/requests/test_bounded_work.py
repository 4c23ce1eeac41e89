"""No header, query, body or message makes work that grows faster than its length."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from denoised.app.compat.prompts import find_labels
from denoised.app.http.requests.field_lines import combine_field_lines
from denoised.app.http.requests.negotiation import Preference, etag_matches
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.http.validation_errors import format_value

JSON = {"Content-Type": "application/json"}
SMALL, LARGE = 2_000, 32_000  # characters


def prefer(text: str) -> object:
    return Preference.parse({"prefer": text}, 60.0)


def accept(text: str) -> object:
    return Preference.parse({"accept": text}, 60.0)


def etag(text: str) -> object:
    return etag_matches(text, '"x"')


def prompt(text: str) -> object:
    return find_labels(text, ["sneaker", "ankle boot", "t-shirt/top", "a b c d", "1 1 1 1"])


def prompt_of_many(text: str) -> object:
    return find_labels(text, ["1 " * 50 + str(k) for k in range(1000)])


def lines(text: str) -> object:
    headers = [(b"accept", text[k : k + 10].encode("latin-1", "replace")) for k in range(0, len(text), 10)]
    return combine_field_lines({"headers": headers})


WORK: list[tuple[Callable[[str], object], Callable[[int], str]]] = [
    (prefer, lambda size: "wait=" + " " * size + "x"),
    (prefer, lambda size: "wait" + " =" * (size // 2)),
    (prefer, lambda size: "wait=" + "0" * size),
    (prefer, lambda size: "wait=" + '"' * size),
    (prefer, lambda size: "wait=1.," * (size // 8)),
    (accept, lambda size: "image/png;" + " " * size + "q"),
    (accept, lambda size: ";q=" * (size // 3)),
    (accept, lambda size: "a/b," * (size // 4)),
    (accept, lambda size: "image/png;q=0." + "9" * size),
    (etag, lambda size: "W/" * (size // 2)),
    (etag, lambda size: '"' + "," * size),
    (prompt, lambda size: " " * size + "x"),
    (prompt, lambda size: "9" * size + " x"),
    (prompt, lambda size: "\u0301\u0316" * (size // 2)),
    (prompt, lambda size: "a" + "\u0316\u0301" * (size // 2)),
    (prompt, lambda size: "a\u200d" * (size // 2)),
    (prompt, lambda size: "a\u0301\u20dd-" * (size // 4)),
    (prompt, lambda size: "a b c " * (size // 6)),
    (prompt, lambda size: "1 " * (size // 2)),
    (prompt, lambda size: "\ufdfa" * (size // 2)),
    (prompt_of_many, lambda size: "1 " * (size // 2)),
    (prompt_of_many, lambda size: "1 7 " * (size // 4)),
    (lines, lambda size: "a" * size),
    (format_value, lambda size: "\ud800" * size),
]


def seconds(work: Callable[[str], object], text: str) -> float:
    """The best of three."""
    found = []
    for _ in range(3):
        started = time.process_time()
        work(text)
        found.append(time.process_time() - started)
    return min(found)


@pytest.mark.parametrize(("work", "text"), WORK, ids=lambda each: getattr(each, "__name__", None))
def test_parsing_takes_time_in_proportion_to_the_length(
    work: Callable[[str], object], text: Callable[[int], str]
) -> None:
    """`Prefer: wait=` with 60,000 spaces took 114 s; quadratic work would take 256 times as long here."""
    small, large = seconds(work, text(SMALL)), seconds(work, text(LARGE))
    assert large < 0.02 or large < 100 * small


def test_many_unknown_fields_are_refused_in_little_time_and_memory(api: TestClient) -> None:
    """600,000 took 33 s and 970 MiB."""
    body = json.dumps({f"k{number}": number for number in range(15_000)})
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match="and 14980 more errors"):
            GenerateRequest.model_validate(json.loads(body))
        assert tracemalloc.get_traced_memory()[1] < 16 * len(body)
    finally:
        tracemalloc.stop()
    answer = api.post("/generate", content=body, headers=JSON)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 21
    assert len(answer.content) < 20_000
    openai = api.post("/v1/images/generations", content=body, headers=JSON)
    assert openai.status_code == 400
    assert openai.json()["error"]["param"] == "k0"


def test_json_over_256_kib_is_refused_unread_everywhere(api: TestClient) -> None:
    body = b'{"seed": 5}' + b" " * (256 * 1024)
    for path in ("/generate", "/v1/images/generations", "/tickets"):
        assert api.post(path, content=body, headers=JSON).status_code == 413
    assert api.post("/generate", content=body[: 256 * 1024], headers=JSON).status_code == 202


ATTACKS: dict[str, bytes] = {
    "nested": b'{"label":' + b"[" * 100_000,
    "objects": b'{"label":' + b'{"a":' * 40_000,
    "long integer": b'{"seed":' + b"9" * 250_000 + b"}",
    "long fraction": b'{"eta":0.' + b"1" * 250_000 + b"}",
    "long exponent": b'{"eta":1e' + b"9" * 250_000 + b"}",
    "one key": b"{" + b'"n":1,' * 40_000 + b'"n":1}',
    "list": b'{"label":[' + b"1," * 120_000 + b"1]}",
    "escapes": b'{"label":"' + b"\\ud800" * 40_000 + b'"}',
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_body_costs_little(name: str, api: TestClient) -> None:
    started = time.process_time()
    answer = api.post("/generate", content=ATTACKS[name], headers=JSON)
    assert time.process_time() - started < 1.0
    assert answer.status_code in (202, 422), answer.text[:300]
    assert len(answer.content) < 20_000


def test_many_query_parameters_are_refused_briefly(api: TestClient) -> None:
    query: Any = "&".join(f"p{number}=1" for number in range(8_000))
    answer = api.get(f"/models?{query}")
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 21
