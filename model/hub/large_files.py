"""Download a large file so that a cut connection or a killed program costs at most one chunk (10 MB).

`huggingface_hub` continues a download whose connection was cut, but writes to a new temporary file in each process. So
a large file is first written here, to `blobs/ETAG.part` in its cache; when it is whole and its hash is right, it
becomes `blobs/ETAG`, which `huggingface_hub` finds.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils._headers import build_hf_headers

from denoised.model.errors import HubError
from denoised.model.hub.byte_progress import Advance
from denoised.model.hub.hub_name import HubName

LARGE = 8 * 1024**2  # bytes
SHA256 = re.compile(r"[0-9a-f]{64}")  # the ETag of a file in large-file storage is its hash
MAX_CUTS = 5  # in a row, each without a further byte
PAUSE = 1.0  # seconds after a cut


class ByteCounter:
    """Passes the bytes of one file on to a progress display, so that they add up to its size.

    advance: takes a number of bytes, negative if bytes are downloaded again.
    size: of the file.
    """

    def __init__(self, advance: Advance, size: int) -> None:
        self._advance, self._size, self._done = advance, size, 0

    def update(self, count: float | None) -> None:
        """Count further bytes, as far as the size allows."""
        step = min(max(self._done + int(count or 0), 0), self._size) - self._done
        self._done += step
        if step:
            self._advance(step)

    def complete(self) -> None:
        """Count what is missing."""
        self.update(self._size - self._done)

    @property
    def bar_class(self) -> Any:
        """What `huggingface_hub` takes for a class of progress bars."""
        counter = self

        class Bar:
            def __init__(self, *arguments: object, initial: int = 0, **settings: object) -> None:
                counter.update(initial - counter._done)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *error: object) -> None:
                pass

            def update(self, count: float | None = 1) -> None:
                counter.update(count)

            def set_postfix_str(self, *arguments: object, **settings: object) -> None:
                pass

            close = set_description = set_postfix_str

        return Bar


def download_large_file(
    folder: Path, name: HubName, commit: str, path: str, endpoint: str, token: str | None, counter: ByteCounter
) -> None:
    """Write the content of a file to `blobs`, continuing where an earlier attempt stopped.

    folder: of the repository in the cache. A file whose ETag is not its hash is left to `huggingface_hub`.

    Raises:
        HubError: if the content is not what the hub announced.
        httpx2.TransportError: if the connection is cut again and again without a further byte.
    """
    url = hf_hub_url(name.repository, path, revision=commit, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, token=token, endpoint=endpoint, retry_on_errors=True)
    etag = metadata.etag or ""
    blob = folder / "blobs" / etag
    if not SHA256.fullmatch(etag) or metadata.size is None or blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _locked(blob.with_name(f"{etag}.part")) as part:
        if blob.exists():  # another process was faster
            return
        _append(url, part, metadata, token, counter)
        if _digest(part) != etag:
            Path(part.name).unlink()
            raise HubError(f"{name}: {path} arrived damaged and was removed: run the command again")
        Path(part.name).rename(blob)


def _append(url: str, part: BinaryIO, metadata: HfFileMetadata, token: str | None, counter: ByteCounter) -> None:
    """Download what a file still lacks."""
    cuts, last = 0, -1
    while True:
        size = part.seek(0, 2)
        cuts, last = (cuts + 1 if size == last else 0), size
        try:
            # A redirect to another host drops the token.
            headers = build_hf_headers(token=token, library_name="denoised")
            http_get(
                url,
                part,
                resume_size=size,
                headers=headers,
                expected_size=metadata.size,
                tqdm_class=counter.bar_class,
            )
            return
        except httpx2.TransportError:
            if cuts >= MAX_CUTS:
                raise
            time.sleep(PAUSE)
        finally:
            part.flush()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """A file for reading and appending that no other process writes to."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
