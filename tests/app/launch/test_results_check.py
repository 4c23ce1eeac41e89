"""The place for results is checked before anything starts, and by `doctor`, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from denoised.app.launch.diagnostics import _check_results
from denoised.app.launch.errors import LaunchError
from denoised.app.launch.preflight import check_results
from denoised.app.launch.serve_settings import ServeSettings
from denoised.jobs.store import redis_keys as keys


def settings(tmp_path: Path, url: str | None, redis_url: str | None = None) -> ServeSettings:
    return ServeSettings("127.0.0.1", 8000, tmp_path, redis_url, results_url=url)


def test_a_place_that_works_is_reported_and_keeps_no_trace_of_the_check(tmp_path: Path) -> None:
    place = tmp_path / "results"
    (found,) = _check_results(settings(tmp_path, f"file://{place}"))
    assert (found.check, found.state) == ("results", "ok")
    assert list(place.iterdir()) == []
    assert list(_check_results(settings(tmp_path, None))) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://nobody-has-this-bucket/x", "the result store refuses access"),
        ("ftp://host/x", "allowed: file:///PATH or s3://BUCKET/PREFIX"),
    ],
)
def test_a_place_that_does_not_work_is_one_line_that_names_the_setting(
    url: str, said: str, tmp_path: Path, s3_url: str
) -> None:
    with pytest.raises(LaunchError, match=said) as caught:
        check_results(url, None)
    assert "\n" not in str(caught.value)
    assert f"DENOISED_RESULTS_URL={url}" in str(caught.value)
    (found,) = _check_results(settings(tmp_path, url))
    assert found.state == "problem"


def test_programs_on_one_redis_have_one_place(valkey_url: str, client: redis.Redis, tmp_path: Path) -> None:
    for _ in range(2):
        check_results(f"file://{tmp_path}/first", valkey_url)
    with pytest.raises(LaunchError, match="another one than that of the other programs on this Redis"):
        check_results(f"file://{tmp_path}/second", valkey_url)
    client.delete(keys.RESULTS)
    check_results(f"file://{tmp_path}/second", valkey_url)
