"""A JSON object with a repeated name is refused by every route: programs differ in which of the values they use."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from denoised.app.admission.picture_parameters import read_parameters
from denoised.app.http.errors import InvalidRequest

JSON = {"Content-Type": "application/json"}
BODIES = {
    "the same value": ('{"steps": 5, "steps": 5}', "steps"),
    "another value": ('{"seed": 1, "label": "sneaker", "seed": 2}', "seed"),
    "null first": ('{"n": null, "n": 2}', "n"),
    "an escape": (r'{"steps": 5, "st\u0065ps": 6}', "steps"),
    "nested": ('{"loras": [{"name": "a", "weight": 1, "weight": 2}]}', "weight"),
    "within an unknown field": ('{"extra": {"deep": [{"a": 1, "a": 1}]}}', "a"),
    "an empty name": ('{"": 1, "": 2}', ""),
}
PATHS = [
    "/generate",
    "/likelihood",
    "/noise",
    "/score",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/images/variations",
    "/sdapi/v1/img2img",
    "/sdapi/v1/options",
    "/sdapi/v1/txt2img",
]


@pytest.mark.parametrize("name", BODIES)
def test_a_repeated_name_is_refused_by_name(name: str, api: TestClient) -> None:
    body, field = BODIES[name]
    answer = api.post("/generate", content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"field": field, "message": "was given 2 times (allowed: once)"}]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_refuses_it_in_its_own_format(path: str, api: TestClient) -> None:
    answer = api.post(path, content='{"prompt": "a", "seed": 1, "prompt": "b", "seed": 2}', headers=JSON)
    assert answer.status_code == (400 if path.startswith("/v1/") else 422)
    assert "prompt: was given 2 times (allowed: once); seed: was given 2 times" in json.dumps(answer.json())


def test_these_are_all_routes_that_read_json(api: TestClient) -> None:
    operations = [
        (path, operation)
        for path, each in api.get("/openapi.json").json()["paths"].items()
        for operation in each.values()
    ]
    reading = [
        path for path, each in operations if "application/json" in each.get("requestBody", {}).get("content", {})
    ]
    assert sorted(reading) == sorted(PATHS)


def test_a_socket_refuses_it(api: TestClient) -> None:
    with api.websocket_connect("ws://127.0.0.1/generate") as socket:
        socket.send_text('{"steps": 5, "steps": 6}')
        problem = json.loads(socket.receive_text())
        assert (problem["status"], problem["errors"][0]["field"]) == (422, "steps")
        assert socket.receive()["code"] == 1008


def test_the_parameters_of_a_png_are_refused_too(api: TestClient) -> None:
    info, out = PngInfo(), io.BytesIO()
    info.add_itxt("parameters", '{"model": "shoes", "seed": 1, "seed": 2, "numerics": "fake"}')
    Image.new("L", (2, 2)).save(out, "png", pnginfo=info)
    with pytest.raises(InvalidRequest, match=re.escape("parameters.seed: was given 2 times (allowed: once)")):
        read_parameters(out.getvalue())


def test_many_repeated_names_cost_little_and_are_cut(api: TestClient) -> None:
    body = "{" + ", ".join(f'"{name}": 1, "{name}": 1' for name in ("x" * 5000, *map(str, range(9000)))) + "}"
    answer = api.post("/generate", content=body, headers=JSON)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) <= 21
    assert len(answer.content) < 5000
