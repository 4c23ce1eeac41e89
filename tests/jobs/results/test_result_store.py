"""Objects in a folder and in a bucket: written, read, deleted; what errors mean; URLs that are refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import httpx
import pytest

from denoised.jobs.errors import StoreFull, StoreRefused, StoreUnavailable, StoreUnfit
from denoised.jobs.results.failures import result_error
from denoised.jobs.results.result_store import ResultStore

PLACES = ("file", "s3")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> ResultStore:
    url = f"file://{tmp_path}/some where" if request.param == "file" else request.getfixturevalue("s3_url")
    return ResultStore(url, 5.0)


def test_objects_are_written_read_in_part_and_deleted(place: ResultStore) -> None:
    place.check()
    place.write({"a/job/x": b"0123456789", "a/job/y": b"", "a/other/x": b"kept"})
    assert (place.read("a/job/x"), place.read("a/job/x", 2, 5), place.read("a/job/y")) == (b"0123456789", b"234", b"")
    assert place.read("a/job/z") is None
    place.delete(["a/job/x", "a/job/z"])
    assert place.read("a/job/x") is None
    place.delete_folder("a/job")
    place.delete_folder("a/job")
    assert (place.read("a/job/y"), place.read("a/other/x")) == (None, b"kept")
    place.delete_folder("a/other")


def test_a_link_reads_an_object_of_a_bucket_without_credentials(s3_url: str, tmp_path: Path) -> None:
    place = ResultStore(s3_url, 5.0)
    place.write({"a/link/x": b"picture"})
    link = place.link("a/link/x", 60, "image/png", "7.png")
    assert link is not None
    answer = httpx.get(link, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["content-type"] == "image/png"
    assert ResultStore(f"file://{tmp_path}", 5.0).link("a/link/x", 60, "image/png", "7.png") is None


def test_a_bucket_that_does_not_exist_and_a_folder_below_a_file_are_refused(s3_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ("s3://nobody-has-this/x", f"file://{tmp_path}/file/x"):
        with pytest.raises(StoreRefused, match="the result store refuses access"):
            ResultStore(url, 5.0).check()


def test_a_bucket_that_does_not_answer_is_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch, s3_url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    place = ResultStore(s3_url, 1.0)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="the result store does not answer"):
            place.read("a/job/x")


class ClientError(Exception):
    """Like botocore's."""

    def __init__(self, code: str) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}}


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFull),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StoreFull),
        (caused(OSError(errno.EIO, "full"), ClientError("XMinioStorageFull")), StoreFull),
        (PermissionError("Access Denied"), StoreRefused),
        (OSError(errno.EROFS, "Read-only file system"), StoreRefused),
        (caused(FileNotFoundError("gone"), ClientError("NoSuchBucket")), StoreRefused),
        (OSError(errno.EBUSY, "Please reduce your request rate."), StoreUnavailable),
        (TimeoutError("Connect timeout on endpoint URL"), StoreUnavailable),
        (ValueError("a defect of a library"), StoreUnavailable),
    ],
    ids=str,
)
def test_an_error_is_full_never_or_not_now(error: Exception, kind: type[Exception]) -> None:
    found = result_error(error)
    assert type(found) is kind
    assert str(found).startswith("the result store ")
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "url",
    ["", "results", "ftp://host/x", "file://host/x", "file:x", "s3://", "s3://key:secret@bucket/x", "s3://b/x?y=1"],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line_without_secrets(url: str) -> None:
    with pytest.raises(StoreUnfit, match="file:///PATH or s3://BUCKET/PREFIX") as caught:
        ResultStore(url, 1.0)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*arguments: Any, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(StoreUnfit, match=r"pip install 'denoised\[s3\]'"):
        ResultStore("s3://bucket/x", 1.0)
