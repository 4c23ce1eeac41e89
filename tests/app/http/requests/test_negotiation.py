"""`Prefer` and `Accept`: the job at once, the finished job, or the picture itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.app.http.requests.negotiation import Preference

ACCEPTS: list[tuple[str, str | None]] = [
    ("", None),
    ("*/*", None),
    ("image/*", "png"),
    ("image/*;q=0.5, */*;q=0.1", "png"),
    ("image/*, image/webp", "png"),
    ("image/*;q=0.5, image/webp", "webp"),
    ("image/*, image/png;q=0", "webp"),
    ("image/*;q=0", None),
    ("application/json, image/*;q=0.5", None),
    ("application/json", None),
    ("text/html,application/xhtml+xml,*/*;q=0.8", None),
    ("image/png", "png"),
    ("image/webp", "webp"),
    ("image/jpeg", "jpeg"),
    ("IMAGE/PNG", "png"),
    (" image/png ; q=0.5 ", "png"),
    ("image/png, */*", "png"),
    ("image/webp;q=0.9, image/png;q=0.1", "webp"),
    ("image/jpeg, image/png", "png"),
    ("image/png;q=0", None),
    ("image/png;q=none", None),
    ("application/json, image/png;q=0.5", None),
    ("application/json;q=0.5, image/png", "png"),
    ("image/png, application/json", "png"),
    ("image/gif", None),
    ("image/pngs", None),
    (",,;;q=,", None),
]


@pytest.mark.parametrize(("accept", "picture"), ACCEPTS)
def test_accept_selects_a_picture_format(accept: str, picture: str | None) -> None:
    assert next(iter(Preference.parse({"accept": accept}, 60.0).pictures), None) == picture


PREFERS = [
    ("", None),
    ("wait=5", 5.0),
    ("wait=0", 0.0),
    ("Wait = 5", 5.0),
    ('wait="5"', 5.0),
    ("wait=100000", 60.0),
    ("wait=999999999", 60.0),
    ("respond-async, wait=10", 10.0),
    ("wait=10; foo=bar", 10.0),
    ("wait=5, wait=7", 5.0),
    ("wait", 60.0),
    (" WAIT ", 60.0),
    ("respond-async, wait", 60.0),
    ("wait; foo=bar", 60.0),
    ("wait=", 60.0),
    ('wait=""', 60.0),
    ("await", None),
    ("wait 5", None),
    ("wait=٥", None),
    ("wait=-1", None),
    ("wait=1.5", None),
    ("wait=soon", None),
    ("wait=9999999999", 60.0),
    ("wait=" + "9" * 5000, 60.0),
    ("return=minimal", None),
]


@pytest.mark.parametrize(("prefer", "wait"), PREFERS)
def test_a_wait_is_capped_and_malformed_ones_are_ignored(prefer: str, wait: float | None) -> None:
    """RFC 7240, section 2: unknown or malformed preferences are ignored; a missing and an empty value are equal."""
    assert Preference.parse({"prefer": prefer}, 60.0).wait == wait


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_header_can_be_parsed(prefer: str, accept: str) -> None:
    found = Preference.parse({"prefer": prefer, "accept": accept}, 60.0)
    assert found.wait is None or 0 <= found.wait <= 60
    assert set(found.pictures) <= {"png", "webp", "jpeg"}
