"""Objects by name in a folder or a bucket, through fsspec.

A name is given to one object and never again, so an object is never overwritten by another, and a reader never sees
half of one: its name is written to Redis when all of it is there.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from denoised.jobs.errors import StoreError, StoreUnavailable, StoreUnfit
from denoised.jobs.results.failures import WHO, result_error

URLS = "file:///PATH or s3://BUCKET/PREFIX"
OPEN_SECONDS = 0.5  # how long nobody asks again after the store did not answer
READ_FACTOR = 4  # a response may take so many times longer than a connection
CONNECTIONS = 64


class ResultStore:
    """Thread-safe. Every method raises StoreUnavailable when the store does not answer, refuses, or is full.

    Attributes:
        url: as it was given.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """timeout: seconds for a connection to S3.

        Raises:
            StoreUnfit: for a URL that cannot be used.
        """
        self.url = url
        self._fs, self._root = _open(url, timeout)
        self._is_local = self._fs.protocol[0] == "file"
        self._open_until = 0.0

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write objects by name, at the same time where the store allows it."""
        if not objects:
            return
        with self._reachable():
            if self._is_local:
                for folder in {self._path(name).rpartition("/")[0] for name in objects}:
                    self._fs.makedirs(folder, exist_ok=True)
            self._fs.pipe({self._path(name): data for name, data in objects.items()})

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """An object, or its bytes from `start` up to `end`; None if it does not exist."""
        with self._reachable():
            try:
                return bytes(self._fs.cat_file(self._path(name), start=start, end=end))
            except FileNotFoundError:
                return None

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; it is not an error if one does not exist."""
        if not names:
            return
        with self._reachable():
            if not self._is_local:
                self._fs.rm([self._path(name) for name in names])
                return
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Delete all objects whose names begin with `name` and a slash."""
        with self._reachable(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)

    def link(self, name: str, seconds: int, media_type: str, filename: str) -> str | None:
        """A URL with which anybody can read an object for some time; None if the store has none."""
        if self._is_local:
            return None
        with self._reachable():
            headers = {"ResponseContentType": media_type}
            headers["ResponseContentDisposition"] = f'inline; filename="{filename}"'
            return str(self._fs.sign(self._path(name), expiration=seconds, **headers))

    def check(self) -> None:
        """Check that an object can be written, read and deleted.

        Raises:
            StoreUnavailable: if it cannot.
        """
        folder = f"check-{uuid.uuid4().hex}"
        name = f"{folder}/check"
        self.write({name: b"denoised"})
        if self.read(name) != b"denoised":
            raise StoreUnavailable(f"{WHO} does not return what was written")
        self.delete([name])
        self.delete_folder(folder)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """Translate errors; after a store that does not answer, refuse for a moment without asking."""
        if time.monotonic() < self._open_until:
            raise StoreUnavailable(f"{WHO} does not answer (a moment ago)")
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # fsspec, botocore and aiohttp have no base class in common
            translated = result_error(error)
            if type(translated) is StoreUnavailable:
                self._open_until = time.monotonic() + OPEN_SECONDS
            raise translated from error


def _open(url: str, timeout: float) -> tuple[Any, str]:
    """The file system of a URL, and the path that all objects are under.

    Raises:
        StoreUnfit: for a URL that cannot be used.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise StoreUnfit(f"the URL of the result store has more than a place (allowed: {URLS}; credentials apart)")
    path = unquote(parts.path).rstrip("/")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and path.startswith("/"):
        return _file_system("file"), path
    if parts.scheme == "s3" and parts.netloc:
        return _s3(timeout), f"{parts.netloc}{path}"
    raise StoreUnfit(f"the URL of the result store is {url!r:.100} (allowed: {URLS})")


def _s3(timeout: float) -> Any:
    """S3, with credentials, region and endpoint from the environment, as all of AWS' programs read them."""
    retries = {"max_attempts": 0}
    config: dict[str, Any] = {"connect_timeout": timeout, "read_timeout": READ_FACTOR * timeout, "retries": retries}
    config |= {"max_pool_connections": CONNECTIONS, "signature_version": "s3v4"}
    options = {"config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}
    system = _file_system("s3", **options)
    system.retries = 1  # one attempt: the callers wait and try again
    return system


def _file_system(protocol: str, **options: Any) -> Any:
    try:
        import fsspec  # slow to import, and needed by few

        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise StoreUnfit(f"results in {protocol}:// need a package: pip install 'denoised[{protocol}]'") from error
