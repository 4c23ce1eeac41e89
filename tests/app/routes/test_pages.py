"""The playground and the API reference as they are served: open, complete, self-contained, revalidated; and HEAD."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from denoised.app.routes.pages import FOLDER

MakeClient = Callable[..., TestClient]

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
DATA = {name for name in FILES if Path(name).suffix in (".md", ".png", ".webp", ".svg")}  # pictures and text
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
NAMESPACES = ("http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML")
PAGES = {  # and its entry module
    "index.html": "main.js",
    "docs.html": "reference/docs.js",
    "learn.html": "learn/course.js",
    "reading.html": "learn/reading.js",
    "operator.html": "operator/operator.js",
}


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _modules(entry: str, imports: str = r'from "(\.[\w./-]+)"') -> set[str]:
    """The names of a module and of all modules that it imports; imports: a regular expression of their paths."""
    found, ahead = set[str](), {entry}
    while ahead:
        found |= ahead
        paths = {(name, path) for name in ahead for path in re.findall(imports, _text(name))}
        ahead = {posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for name, path in paths} - found
    return found


def _all_modules(entry: str) -> set[str]:
    """Those, and the modules that it loads when they are asked for."""
    return _modules(entry, r'(?:from |import\()"(\.[\w./-]+)"')


@pytest.mark.parametrize(
    ("path", "page"), [("/", "index.html"), ("/learn", "learn.html"), ("/operator", "operator.html")]
)
def test_the_pages_are_open(path: str, page: str, make_client: MakeClient) -> None:
    answer = make_client(keys=("secret",)).get(path, headers={"Authorization": ""}, follow_redirects=False)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / page).read_bytes()


@pytest.mark.parametrize("name", ["how-it-works.md", "pictures/film.png", "pictures/running-batch.svg"])
def test_the_course_has_the_document_as_it_is(name: str, repository: Path) -> None:
    """A copy: a symbolic link to `docs/` would point nowhere in the source distribution."""
    assert (FOLDER / "learn" / name).read_bytes() == (repository / "docs" / name).read_bytes(), f"copy docs/{name}"


@pytest.mark.parametrize("name", FILES)
def test_its_files_are_open_typed_and_load_nothing_from_other_sites(name: str, make_client: MakeClient) -> None:
    answer = make_client(keys=("secret",)).get(f"/playground/{name}", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "'self' blob: data:"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|https?:|\*", answer.headers["content-security-policy"])


@pytest.mark.parametrize("path", ["/", "/playground/main.js"])
def test_a_cached_file_is_a_304_and_a_changed_one_is_sent(path: str, make_client: MakeClient) -> None:
    api = make_client()
    first = api.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = api.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert api.get(path, headers={"If-None-Match": '"older"'}).content == first.content


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/no.js",
        "/playground/..%2fpage.py",
        "/playground/..%2f..%2f",
        "/playground/learn",
        "/playground/learn/../../pages.py",
    ],
)
def test_no_other_file_is_served_from_the_folder(path: str, make_client: MakeClient) -> None:
    answer = make_client().get(path, follow_redirects=False)
    assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_the_page_settings_say_whether_a_key_is_required(keys: tuple[str, ...], make_client: MakeClient) -> None:
    answer = make_client(keys=keys).get("/playground/settings.json", headers={"Authorization": ""})
    assert answer.json() == {"keys": bool(keys)}


@pytest.mark.parametrize(("page", "entry"), PAGES.items())
def test_a_page_preloads_exactly_what_its_modules_import(page: str, entry: str) -> None:
    preloaded = re.findall(r'modulepreload" href="/playground/([\w./-]+)"', _text(page))
    assert set(preloaded) == _modules(entry) - {entry}
    assert len(preloaded) == len(set(preloaded))
    assert f'src="/playground/{entry}"' in _text(page)


def test_every_file_belongs_to_a_page() -> None:
    styles = {name for page in PAGES for name in re.findall(r'stylesheet" href="/playground/([\w./-]+)"', _text(page))}
    modules = {name for entry in PAGES.values() for name in _all_modules(entry)}
    on_demand = {name for module in modules for name in re.findall(r'"/playground/([\w./-]+\.css)"', _text(module))}
    assert {*PAGES, *styles, *modules, *on_demand} == set(FILES) - DATA


@pytest.mark.parametrize("name", sorted(set(FILES) - DATA))
def test_no_text_is_parsed_as_html_and_no_url_leads_to_another_site(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function", text
    )
    addresses = set(re.findall(r"https?://[^\s\"')]+", text))
    assert {address for address in addresses if not address.startswith(NAMESPACES)} == set()


@pytest.mark.parametrize(("page", "entry"), PAGES.items())
def test_every_id_that_a_module_uses_is_on_its_page(page: str, entry: str) -> None:
    ids = set(re.findall(r' id="([\w-]+)"', _text(page)))
    for name in _all_modules(entry):
        assert set(re.findall(r'byId\("([\w-]+)"\)', _text(name))) <= ids, name


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
def test_fastapis_own_pages_are_not_served(path: str, api: TestClient) -> None:
    assert api.get(path).status_code == 404


def test_the_api_reference_is_open_in_the_playground_when_docs_needs_a_key(make_client: MakeClient) -> None:
    api = make_client(keys=("secret",))
    assert api.get("/docs", headers={"Authorization": ""}).status_code == 401
    reference = api.get("/playground/docs.html", headers={"Authorization": ""})
    assert reference.content == api.get("/docs").content == (FOLDER / "docs.html").read_bytes()
    assert api.get("/openapi.json", headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/playground/style.css", "/healthz", "/readyz", "/models", "/jobs", "/nothing"])
def test_head_has_the_headers_of_get_and_no_body(path: str, api: TestClient) -> None:
    got, head = api.get(path), api.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("content-length", "content-type", "etag", "cache-control"):
        assert head.headers.get(name) == got.headers.get(name), name


def test_head_of_a_picture_has_its_length_and_etag(api: TestClient, fake_worker: Any) -> None:
    job_id = fake_worker.succeeded(job_id="0" * 32)
    got, head = (call(f"/jobs/{job_id}/images/0") for call in (api.get, api.head))
    assert (head.status_code, head.headers["etag"], head.content) == (200, got.headers["etag"], b"")
    assert int(head.headers["content-length"]) == len(got.content) > 0


def test_head_of_a_stream_ends_at_once(api: TestClient) -> None:
    job_id = api.post("/generate", json={}).json()["id"]
    head = api.head(f"/jobs/{job_id}/events")  # the job never starts, so its stream would not end
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")


def test_head_needs_a_key_where_get_does(make_client: MakeClient) -> None:
    api = make_client(keys=("secret",))
    assert api.head("/jobs", headers={"Authorization": ""}).status_code == 401
    assert api.head("/", headers={"Authorization": ""}).status_code == 200


def test_head_is_not_allowed_where_get_is_not(api: TestClient) -> None:
    head = api.head("/generate")
    assert (head.status_code, head.headers["allow"]) == (405, "POST")
    assert api.post("/jobs", json={}).headers["allow"] == "GET, HEAD"
