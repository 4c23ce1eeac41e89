"""The request in a PNG is read as the worker wrote it; every other file is refused in one sentence."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoised.app.admission.picture_parameters import MAX_TEXT_BYTES, SIGNATURE, read_parameters
from denoised.app.http.errors import InvalidRequest, UnsupportedMedia
from denoised.jobs.sampling_request import SamplingRequest
from denoised.worker.delivery.pictures.encoding import encode

PARAMETERS = {"model": "shoes", "seed": 7, "numerics": "fake"}
PIXELS = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28, 1)
PNG = encode(PIXELS, "png", PARAMETERS)
HEAD, TAIL = PNG[:33], PNG[PNG.index(b"IDAT") - 4 :]  # the signature and IHDR; IDAT and IEND


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def itxt(text: bytes, *, compressed: bool = False, keyword: bytes = b"parameters") -> bytes:
    content = zlib.compress(text) if compressed else text
    return chunk(b"iTXt", keyword + b"\0" + bytes([compressed, 0]) + b"\0\0" + content)


def carrying(*chunks: bytes) -> bytes:
    return HEAD + b"".join(chunks) + TAIL


def saying(**fields: Any) -> bytes:
    return carrying(itxt(json.dumps(PARAMETERS | fields).encode()))


@settings(max_examples=60, deadline=None)
@given(
    model=st.text(min_size=1, max_size=20),
    label_name=st.none() | st.text(max_size=20),
    seed=st.integers(0, 2**53 - 1),
    steps=st.integers(1, 1000),
    eta=st.floats(0, 1),
    guidance_scale=st.floats(1, 20),
    spacing=st.sampled_from([None, "leading", "trailing", "linspace", "geometric"]),
    sigma_min=st.none() | st.floats(0, 100),
    sigmas=st.none() | st.lists(st.floats(0, 1000), min_size=1, max_size=5),
    karras=st.sampled_from([None, False, True]),
)
def test_parameters_are_read_as_the_worker_writes_them(
    request_of: Callable[..., SamplingRequest], model: str, label_name: str | None, **fields: Any
) -> None:
    asked = request_of(model=model, label_name=label_name, **fields)
    written = asked.parameters(0, "packed/torch-2.13.0/x86_64-avx512/2-threads/format-2")
    read = read_parameters(encode(PIXELS, "png", written))
    assert read.model_dump(exclude_unset=True) == written


@pytest.mark.parametrize("compressed", [False, True])
def test_text_is_read_compressed_or_not_and_before_or_after_the_pixels(compressed: bool) -> None:
    text = itxt(json.dumps(PARAMETERS | {"label": "ботинок"}).encode(), compressed=compressed)
    end = TAIL.index(b"IEND") - 4
    for data in (carrying(text), HEAD + TAIL[:end] + text + TAIL[end:], carrying(itxt(b"?", keyword=b"other"), text)):
        assert read_parameters(data).label == "ботинок"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "the signature alone": (SIGNATURE, "truncated"),
    "half a file": (PNG[: len(PNG) // 2], "truncated"),
    "all but one byte": (PNG[:-1], "truncated"),
    "a chunk longer than the file": (HEAD + struct.pack(">I", 2**32 - 1) + b"iTXt" + b"x" * 99, "truncated"),
    "no text": (HEAD + TAIL, "no iTXt"),
    "text of another kind": (carrying(chunk(b"tEXt", b"parameters\0" + json.dumps(PARAMETERS).encode())), "no iTXt"),
    "compressed zTXt text": (
        carrying(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"0" * 10**7))),
        "no",
    ),
    "two requests": (carrying(itxt(b"{}"), itxt(b"{}")), "2 iTXt"),
    "a wrong checksum": (PNG.replace(b'"seed": 7', b'"seed": 8'), "checksum"),
    "nothing after the keyword": (carrying(chunk(b"iTXt", b"parameters\0")), "JSON"),
    "no text at all": (carrying(chunk(b"iTXt", b"parameters\0\0\0")), "JSON"),
    "broken packing": (carrying(chunk(b"iTXt", b"parameters\0\1\0\0\0nonsense")), "decompressed"),
    "packing cut short": (carrying(chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b'{"model"')[:-6])), "JSON"),
    "long text": (carrying(itxt(b" " * (MAX_TEXT_BYTES + 1))), "longer"),
    "long text, compressed": (carrying(itxt(b" " * (MAX_TEXT_BYTES + 1), compressed=True)), "longer"),
    "no JSON": (carrying(itxt(b"a cat, best quality, Steps: 20, Seed: 7")), "JSON"),
    "no UTF-8": (carrying(itxt(b'{"model": "\xff"}')), "JSON"),
    "half a surrogate": (carrying(itxt(b'{"model": "\\ud800"}')), "JSON"),
    "deep JSON": (carrying(itxt(b"[" * 60_000)), "JSON"),
    "a long number": (carrying(itxt(b'{"seed": ' + b"9" * 60_000 + b"}")), "JSON"),
    "a list": (carrying(itxt(b"[]")), "JSON object"),
    "nothing asked": (carrying(itxt(b"{}")), "parameters.seed: is missing"),
    "a seed as text": (saying(seed="7"), "parameters.seed"),
    "no seed": (saying(seed=None), "parameters.seed"),
    "a seed too large": (saying(seed=2**53), f"parameters.seed: {2**53} was given (allowed: {2**53 - 1} or less)"),
    "several images": (saying(n=16), "parameters.n"),
    "an image and a half": (saying(n=True), "parameters.n"),
    "frames": (saying(preview_every=1), "parameters.preview_every"),
    "another format": (saying(format="webp"), "parameters.format"),
    "a model without a name": (saying(model=""), "parameters.model"),
    "NaN": (saying(eta=float("nan")), "parameters.eta"),
    "an infinite pull": (saying(guidance_scale=float("inf")), "parameters.guidance_scale"),
    "an unknown field": (saying(callback="http://example.org"), "parameters.callback"),
    "a webhook": (saying(webhook="http://example.org"), "parameters.webhook"),
    "numerics that steer a terminal": (saying(numerics="\x1b[2J"), "parameters.numerics"),
    "numerics without end": (saying(numerics="x" * 201), "parameters.numerics"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_png_without_a_valid_request_is_refused_with_the_cause(name: str) -> None:
    data, word = HOSTILE[name]
    with pytest.raises(InvalidRequest) as refused:
        read_parameters(data)
    assert word in refused.value.detail
    assert len(refused.value.detail) < 1000
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0", b"GIF89a", b"{}"])
def test_a_file_that_is_no_png_is_an_unsupported_media_type(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="not a PNG"):
        read_parameters(data)


def test_a_decompression_bomb_is_not_decompressed() -> None:
    bomb = carrying(itxt(b" " * 50_000_000, compressed=True))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="longer"):
        read_parameters(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * MAX_TEXT_BYTES


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_bytes_cause_an_unexpected_error(data: st.DataObject) -> None:
    """One of our files with parts overwritten, removed or inserted; the checksums match the result."""
    text = bytearray(json.dumps(PARAMETERS).encode())
    file = bytearray(carrying(itxt(bytes(_mutated(data, text)))) if data.draw(st.booleans()) else PNG)
    with suppress(UnsupportedMedia, InvalidRequest):
        read = read_parameters(bytes(_mutated(data, file)))
        assert 0 <= read.seed < 2**53
        assert (read.n, read.format) == (1, "png")


def _mutated(data: st.DataObject, file: bytearray) -> bytearray:
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(file)))
        end = data.draw(st.integers(start, min(len(file), start + 40)))
        file[start:end] = data.draw(st.binary(max_size=20))
    return file
