"""Which URLs and addresses a webhook may go to."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from denoised.app.webhooks.addresses import RefusedAddress, is_public, resolve_host
from denoised.app.webhooks.target import WebhookTarget, allowed_origin
from denoised.app.webhooks.webhook_settings import WebhookSettings, WebhookSettingsError
from tests.webhook_receiver import SECRET


@pytest.mark.parametrize(
    ("url", "stored", "origin"),
    [
        ("https://hooks.example.com/a?b=c", "https://hooks.example.com/a?b=c", "https://hooks.example.com"),
        ("HTTPS://Hooks.Example.com:443/A", "https://hooks.example.com/A", "https://hooks.example.com"),
        ("https://hooks.example.com", "https://hooks.example.com/", "https://hooks.example.com"),
        ("https://h.example:8443?x", "https://h.example:8443/?x", "https://h.example:8443"),
        ("http://[::1]:9000/", "http://[::1]:9000/", "http://[::1]:9000"),
        ("http://h.example:80/", "http://h.example/", "http://h.example"),
    ],
)
def test_a_url_is_stored_in_one_form(url: str, stored: str, origin: str) -> None:
    target = WebhookTarget.parse(url)
    assert (target.url, target.origin) == (stored, origin)
    assert WebhookTarget.parse(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h.example/",
        "hooks.example.com/a",
        "https:///a",
        "https://user@h.example/",
        "https://user:word@h.example/",
        "https://h.example/#part",
        "https://h.example:0/",
        "https://h.example:65536/",
        "https://h.example:x/",
        "https://h.example\\@evil.example/",
        "https://h.example/a b",
        "https://h.example/\r\nX: y",
        "https://bücher.example/",
        "https://[::1/",
    ],
)
def test_a_url_that_programs_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        WebhookTarget.parse(url)


def test_an_operator_allows_a_host_a_port_or_an_origin_without_encryption() -> None:
    assert allowed_origin("Hooks.example.com") == "https://hooks.example.com"
    assert allowed_origin("hooks.example.com:8443") == "https://hooks.example.com:8443"
    assert allowed_origin("http://10.0.0.5:9000") == "http://10.0.0.5:9000"
    with pytest.raises(ValueError, match="it has a path"):
        allowed_origin("https://hooks.example.com/a")


def test_settings_that_cannot_work_are_refused_in_one_line() -> None:
    with pytest.raises(WebhookSettingsError, match="need DENOISED_WEBHOOK_SECRETS"):
        WebhookSettings.parse(["h.example"], [], [], 10.0)
    with pytest.raises(WebhookSettingsError, match=r"has 5 characters \(allowed: 24 or more\)"):
        WebhookSettings.parse(["h.example"], [], ["short"], 10.0)
    with pytest.raises(WebhookSettingsError, match=r"DENOISED_WEBHOOK_PRIVATE_HOSTS: 'h\.example/a' cannot be allowed"):
        WebhookSettings.parse([], ["h.example/a"], [SECRET], 10.0)
    both = WebhookSettings.parse(["a.example"], ["b.example"], [SECRET], 10.0)
    assert both.origins == {"https://a.example", "https://b.example"}
    assert both.private_origins == {"https://b.example"}


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_other_addresses_are_not(address: str) -> None:
    assert not is_public(address)


def test_a_host_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(RefusedAddress, match="private"):
        resolve_host("hooks.example.com", 443, private=False)
    assert [address for _, address in resolve_host("hooks.example.com", 443, private=True)] == [
        ("93.184.215.14", 443),
        ("10.0.0.1", 443),
    ]
