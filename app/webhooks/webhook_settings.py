"""Which hosts may receive webhooks, and how these are signed and sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from denoised.app.webhooks.target import allowed_origin

MIN_SECRET = 24  # characters; Standard Webhooks asks for 24 bytes


class WebhookSettingsError(ValueError):
    """A setting of webhooks is invalid. The message is one line."""


@dataclass(frozen=True)
class WebhookSettings:
    """No host is allowed by default.

    Attributes:
        origins: Allowed receivers (`WebhookTarget.origin`).
        private_origins: Those of them whose addresses may be private.
        secrets: What callers' secrets are derived from, the newest first; a webhook is signed with each.
        timeout: Seconds that an attempt may take.
        first_delay: Seconds between the first attempt and the second; later delays are four times as long each.
    """

    origins: frozenset[str] = frozenset()
    private_origins: frozenset[str] = frozenset()
    secrets: tuple[str, ...] = ()
    timeout: float = 10.0
    first_delay: float = 5.0

    @property
    def lease(self) -> float:
        """Seconds after which an attempt of a front end that was lost is repeated. The system's resolver has a limit of
        its own, which an attempt may take in addition to `timeout`."""
        return 2 * self.timeout + 5.0

    @classmethod
    def parse(
        cls, hosts: Iterable[str], private_hosts: Iterable[str], secrets: Sequence[str], timeout: float
    ) -> WebhookSettings:
        """The settings from the texts of the command line.

        Raises:
            WebhookSettingsError: for a host that is none, hosts without a secret, and a short secret.
        """
        public = frozenset(_origin(host, "DENOISED_WEBHOOK_HOSTS") for host in hosts)
        private = frozenset(_origin(host, "DENOISED_WEBHOOK_PRIVATE_HOSTS") for host in private_hosts)
        if (public or private) and not secrets:
            raise WebhookSettingsError(
                "webhooks need DENOISED_WEBHOOK_SECRETS, from which each key's secret is derived: openssl rand -hex 32"
            )
        for secret in secrets:
            if len(secret) < MIN_SECRET:
                problem = f"a secret of DENOISED_WEBHOOK_SECRETS has {len(secret)} characters"
                raise WebhookSettingsError(f"{problem} (allowed: {MIN_SECRET} or more)")
        return cls(public | private, private, tuple(secrets), timeout)


def _origin(text: str, variable: str) -> str:
    try:
        return allowed_origin(text)
    except ValueError as error:
        raise WebhookSettingsError(f"{variable}: {text!r:.80} cannot be allowed: {error}") from error
