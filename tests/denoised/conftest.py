"""The client's tests run against the front end that `tests/app` starts."""

from tests.app.conftest import _standing, browse, card_of, desk, listen, nowhere, request_of, url

__all__ = ["_standing", "browse", "card_of", "desk", "listen", "nowhere", "request_of", "url"]
