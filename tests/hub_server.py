"""A server of the Hugging Face Hub's API on loopback: listings, files with ETag and Range, gates, and cut connections.

It speaks what `huggingface_hub` asks for: `GET /api/models/OWNER/NAME/revision/REVISION?blobs=true`, and `HEAD` and
`GET /OWNER/NAME/resolve/REVISION/PATH`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1024  # bytes; larger files have the hash of their content as ETag, as in large-file storage


@dataclass
class HubRepository:
    """A model on the server.

    files: contents by path.
    license, gated: as the listing says; a gated model's files need the server's token.
    private: without the token, it does not seem to exist.
    """

    files: dict[str, bytes]
    license: str = "openrail++"
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        names = [f"{path} {_etag(content)}" for path, content in sorted(self.files.items())]
        return hashlib.sha1("\n".join(names).encode()).hexdigest()


@dataclass
class HubServer:
    """Models, and what was asked for.

    token: accepted in `Authorization`.
    cut_after: bytes after which the connection of a path's download is cut, each used once.
    damaged: paths whose content differs from their ETag.
    requests: method, path and Range header of each request.
    """

    url: str
    repositories: dict[str, HubRepository] = field(default_factory=dict)
    token: str = "hf_right"
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """The paths of files whose content was asked for."""
        return [path.split("/", 5)[5] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server without models."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    listener.daemon_threads = True
    hub = HubServer(f"http://127.0.0.1:{listener.server_port}")
    listener.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if listing else parts[:2])
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository is None or (repository.private and not known):
            self._refuse(401, "RepoNotFound")
        elif (revision := parts[5] if listing else parts[3]) not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound")
        elif listing:
            self._send_listing(name, repository)
        elif repository.gated and not known:
            self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif (file := "/".join(parts[4:])) not in repository.files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
        else:
            assert revision
            self._send_file(file, repository, body=body)

    def _send_listing(self, name: str, repository: HubRepository) -> None:
        siblings = [
            {"rfilename": path, "size": len(content), "blobId": _etag(content)}
            for path, content in repository.files.items()
        ]
        listing = {
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "cardData": {"license": repository.license},
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        content = json.dumps(listing).encode()
        self._begin(200, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        self.wfile.write(content)

    def _send_file(self, path: str, repository: HubRepository, *, body: bool) -> None:
        content = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if path in self.hub.damaged:
            content = bytes(len(content))
        part = content[start:]
        self._begin(206 if "Range" in self.headers else 200, {**headers, "Content-Length": str(len(part))})
        if not body:
            return
        cuts = self.hub.cut_after.get(path)
        if cuts:
            self.wfile.write(part[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(part)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._begin(status, {"X-Error-Code": code, "Content-Length": "0", **(headers or {})})

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@cache
def _etag(content: bytes) -> str:
    digest = hashlib.sha256 if len(content) > LARGE else hashlib.sha1
    return digest(content).hexdigest()
