"""Which names mean this machine, and how a Host header is read."""

from __future__ import annotations

import time

import pytest

from denoised.app.http.requests.local_hosts import is_local, split_netloc


@pytest.mark.parametrize(
    "name", ["localhost", "LocalHost.", "127.0.0.1", "127.1.2.3", "::1", "::0001", "::ffff:127.0.0.9"]
)
def test_a_local_name(name: str) -> None:
    assert is_local(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "127.1",
        "127.evil.com",
        "127.0.0.1.evil.com",
        "localhost.lan",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "127.0.0.256",
    ],
)
def test_a_name_that_is_not_local(name: str) -> None:
    assert not is_local(name)


def test_a_netloc_is_read_as_a_whole_or_not_at_all() -> None:
    assert split_netloc("Localhost.:80") == ("localhost", 80)
    assert split_netloc("[::1]:65535") == ("::1", 65535)
    assert split_netloc("shop.example") == ("shop.example", None)
    for malformed in ("", ":80", "a:b", "a:65536", "[::1", "::1]", "[::1]x", "a@b", "a b", "a\n"):
        assert split_netloc(malformed) is None, malformed


def test_reading_a_long_netloc_takes_no_longer_than_its_length() -> None:
    started = time.thread_time()
    for part in (":", "[", "a", "1", "[::1]", "a:1"):
        split_netloc(part * 100_000 + "@")
    assert time.thread_time() - started < 1
