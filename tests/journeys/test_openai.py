"""The official `openai` package against the running service: pictures, partial images, and its own exceptions."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from denoised.app.http.api_keys import new_key

DIGITS = {"model": "digits", "extra_body": {"steps": 4, "seed": 11}}
GARMENTS = "fashion-mnist"
MOST = 16  # max_images of a model


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[openai.OpenAI]:
    """A client as a program written for the OpenAI API creates it."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def opened(b64: str | None) -> Image.Image:
    assert b64 is not None
    picture = Image.open(io.BytesIO(base64.b64decode(b64)))
    picture.load()
    return picture


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert {"fashion-mnist", "digits"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("digits").object == "model"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-image-2")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize("n", [1, 2, 5, MOST])
def test_the_requested_number_of_pictures_is_returned(n: int, client: openai.OpenAI, service: Any) -> None:
    answer = client.images.generate(prompt="a seven, please", n=n, **DIGITS)
    assert answer.data is not None
    assert abs(answer.created - time.time()) < 120
    assert (answer.size, answer.output_format, answer.background) == ("8x8", "png", "opaque")
    assert [picture.seed for picture in answer.data] == list(range(11, 11 + n))  # type: ignore[attr-defined]
    assert all(opened(picture.b64_json).size == (8, 8) for picture in answer.data)
    assert all(picture.url is None for picture in answer.data)
    assert len({picture.b64_json for picture in answer.data}) == n
    with service.client() as plain:
        body = {"model": "digits", "label": "7", "n": 1, "seed": 11, "steps": 4}
        same = plain.post("/generate", json=body, headers={"Accept": "image/png"})
    assert base64.b64decode(answer.data[0].b64_json or "") == same.content


def test_one_picture_over_the_limit_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="7", n=MOST + 1, **DIGITS)
    assert (refused.value.param, refused.value.type) == ("n", "invalid_request_error")
    assert str(MOST) in refused.value.message
    assert refused.value.request_id


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_url_response_leads_to_the_picture(format: Any, client: openai.OpenAI, service: Any) -> None:
    """Programs for the OpenAI API follow the URL without further headers."""
    answer = client.images.generate(prompt="7", n=2, response_format="url", output_format=format, **DIGITS)
    assert answer.data is not None
    for picture in answer.data:
        assert picture.b64_json is None
        assert picture.url is not None
        assert picture.url.startswith(service.url)
        fetched = httpx.get(picture.url, trust_env=False)
        assert fetched.headers["content-type"] == f"image/{format}"
        assert Image.open(io.BytesIO(fetched.content)).size == (8, 8)


@pytest.mark.parametrize("partial", [0, 1, 2, 3])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_a_stream_sends_partial_images_and_then_the_picture(partial: int, format: Any, client: openai.OpenAI) -> None:
    with client.images.generate(
        prompt="the digit 3", stream=True, partial_images=partial, output_format=format, **DIGITS
    ) as stream:
        events = list(stream)
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * partial
    assert [event.partial_image_index for event in events[:-1]] == list(range(partial))  # type: ignore[union-attr]
    final = events[-1]
    assert final.type == "image_generation.completed"
    assert final.usage.total_tokens == 0
    assert all(event.size == "8x8" and event.output_format == format for event in events)
    assert all(opened(event.b64_json).format == format.upper() for event in events)
    plain = client.images.generate(prompt="3", output_format=format, **DIGITS)
    assert plain.data is not None
    assert plain.data[0].b64_json == final.b64_json


def test_partial_images_approach_the_picture(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a sneaker, please", stream=True, partial_images=3, model=GARMENTS, extra_body={"seed": 3, "steps": 12}
    )
    pictures = [list(opened(event.b64_json).convert("L").tobytes()) for event in stream]
    assert len(pictures) == 4
    distance = [sum(abs(a - b) for a, b in zip(picture, pictures[-1], strict=True)) for picture in pictures]
    assert distance[0] > distance[1] > distance[2] > distance[3] == 0


def test_plain_words_find_their_label_or_get_the_list_of_them(client: openai.OpenAI) -> None:
    answers = [client.images.generate(prompt=prompt, **DIGITS) for prompt in ("7", "a seven, please", "SEVENS?")]
    assert len({answer.data[0].b64_json for answer in answers if answer.data}) == 1
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a cat", model=GARMENTS)
    assert refused.value.param == "prompt"
    assert "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot" in refused.value.message
    with pytest.raises(openai.BadRequestError, match="several classes"):
        client.images.generate(prompt="a sneaker or a bag", model=GARMENTS)


def test_unsupported_options_are_refused_with_an_explanation(client: openai.OpenAI) -> None:
    for wrong, param in (({"size": "1024x1024"}, "size"), ({"background": "transparent"}, "background")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="a bag", model=GARMENTS, **wrong)  # type: ignore[arg-type]
        assert refused.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a bag", model="gpt-image-2")
    with pytest.raises(openai.BadRequestError, match="a stream has one picture"):
        client.images.generate(prompt="a bag", model=GARMENTS, n=2, stream=True)
    with pytest.raises(openai.NotFoundError):
        client.post("/audio/speech", cast_to=object)


def test_the_asynchronous_client_can_stream(service: Any) -> None:
    async def events() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.images.generate(prompt="7", stream=True, partial_images=1, **DIGITS)
            return [event.type async for event in stream]

    assert asyncio.run(events()) == ["image_generation.partial_image", "image_generation.completed"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_its_job(stream: bool, service: Any) -> None:
    """LitServe#165."""
    body = {"prompt": "coat", "n": 1, "stream": stream, "steps": 1000}
    with service.client() as plain:
        with (
            pytest.raises(httpx.ReadTimeout),
            httpx.Client(base_url=service.url, timeout=1.0, trust_env=False) as leaving,
            leaving.stream("POST", "/v1/images/generations", json=body) as answer,
        ):
            answer.read()
        end = time.monotonic() + 30
        while (job := plain.get("/jobs").json()["jobs"][0])["status"] != "canceled":
            assert job["steps"] == 1000
            assert job["status"] in ("queued", "running")
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture(scope="module")
def keyed(start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A service with keys and a small queue limit."""
    folder = tmp_path_factory.mktemp("openai")
    key, line = new_key("program")
    (folder / "keys").write_text(f"{line}\n")
    environment = {"DENOISED_API_KEYS_FILE": str(folder / "keys"), "DENOISED_MAX_WAIT": "1", "DENOISED_MAX_QUEUE": "1"}
    return start_service(folder / "data", environment=environment), key


def test_refusals_raise_the_exceptions_of_the_package(keyed: tuple[Any, str]) -> None:
    service, key = keyed
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            stranger.images.generate(prompt="a bag", model=GARMENTS)
        assert unknown.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=key) as client, service.client() as plain:
        plain.headers["Authorization"] = f"Bearer {key}"
        answer = client.images.generate(prompt="a bag", model=GARMENTS, response_format="url", extra_body={"steps": 1})
        assert answer.data is not None
        assert answer.data[0].url is not None
        assert httpx.get(answer.data[0].url, trust_env=False).status_code == 401
        assert plain.get(answer.data[0].url).status_code == 200
        with pytest.raises(openai.InternalServerError) as late:
            client.images.generate(prompt="a bag", model=GARMENTS, n=MOST, extra_body={"steps": 1000})
        assert late.value.status_code == 504
        assert late.value.code == "timeout"
        jobs = plain.get("/jobs").json()["jobs"]
        assert len(jobs) == 2  # the package did not retry
        refused = 0
        while refused < 3:  # in a row: the worker has taken all that it takes
            accepted = plain.post("/generate", json={"model": GARMENTS, "n": MOST, "steps": 1000}).status_code == 202
            refused = 0 if accepted else refused + 1
            time.sleep(0.0 if accepted else 0.2)
        with pytest.raises(openai.RateLimitError) as busy:
            client.with_options(max_retries=0).images.generate(prompt="a bag", model=GARMENTS)
        assert busy.value.code == "rate_limit_exceeded"
        assert int(busy.value.response.headers["retry-after"]) >= 1
        for job in plain.get("/jobs").json()["jobs"]:
            plain.delete(f"/jobs/{job['id']}")


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


def test_pictures_are_edited_and_varied(client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="three", **DIGITS)
    assert made.data is not None
    picture = base64.b64decode(made.data[0].b64_json or "")
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (4, 0, 8, 8))  # the right half is made anew
    out = io.BytesIO()
    mask.save(out, "png")
    edited = client.images.edit(image=picture, mask=out.getvalue(), prompt="seven", **DIGITS)
    assert edited.data is not None
    found, before = pixels(base64.b64decode(edited.data[0].b64_json or "")), pixels(picture)
    halves = [
        [data[row * 8 + part : row * 8 + part + 4] for row in range(8)] for data in (found, before) for part in (0, 4)
    ]
    assert halves[0] == halves[2]
    assert halves[1] != halves[3]
    with pytest.warns(DeprecationWarning, match="deprecated"):  # by the client; OpenAI's own models no longer do it
        varied = client.images.create_variation(
            image=("p.png", picture), n=2, model="digits", extra_body={"strength": 0.5}
        )
    assert varied.data is not None
    assert len({picture.b64_json for picture in varied.data}) == 2
    with client.images.edit(image=picture, prompt="seven", stream=True, partial_images=1, **DIGITS) as stream:
        assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]
