"""The addresses that a server listens on, and the URLs that lead there."""

from __future__ import annotations

import socket

import pytest

from denoised.app.launch.addresses import bind_socket, check_bindable, local_url
from denoised.app.launch.errors import LaunchError
from denoised.app.launch.preflight import check_port


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("127.0.0.2", "http://127.0.0.2:80"),
        ("localhost.", "http://localhost:80"),
        ("Box.lan", "http://box.lan:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("0:0:0:0:0:0:0:0", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("[::1]", "http://[::1]:80"),
    ],
)
def test_the_local_url_of_a_host(host: str, url: str) -> None:
    assert local_url(host, 80) == url


def test_a_port_in_use_is_found_on_the_address_that_the_server_binds() -> None:
    """`localhost` may resolve to ::1 first; the check and the server bind the same one of its addresses."""
    with bind_socket("localhost", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        port = bound.getsockname()[1]
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            check_bindable("localhost", port)
    check_bindable("localhost", port)


def test_a_port_of_another_server_on_all_addresses_is_in_use() -> None:
    with socket.create_server(("0.0.0.0", 0)) as other, pytest.raises(OSError, match="in use"):
        check_bindable("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "192.0.2.1", "[", "1.2.3"])
def test_a_host_that_is_not_this_machine_is_one_line_about_the_host(host: str) -> None:
    with pytest.raises(LaunchError, match=r"^--host \S+ is not an .*: choose another$"):
        check_port(host, 8000)
