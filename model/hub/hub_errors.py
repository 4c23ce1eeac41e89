"""The errors of `huggingface_hub` as one line for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from denoised.command_line.system_errors import describe_system_error
from denoised.model.errors import HubError, HubUnreachable
from denoised.model.hub.hub_name import HubName

UNAUTHORIZED, FORBIDDEN, SERVER_ERRORS = 401, 403, 500  # HTTP status codes


@contextmanager
def hub_errors(name: HubName, endpoint: str) -> Iterator[None]:
    """Translate the errors of a call that concerns one model.

    Raises:
        HubUnreachable: if the hub does not answer, or must not be asked.
        HubError: for a name, revision or file that is not there or not for us; the message says what to do.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(f"{name}: HF_HUB_OFFLINE is set, and the model is not in the cache") from error
    except GatedRepoError as error:
        raise HubError(
            f"{name} is gated: accept its conditions on {endpoint}/{name.repository}, then set HF_TOKEN to a token of "
            "that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(f"there is no model {name.repository} on {endpoint} (a private one needs HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{name.repository} has no revision {name.revision!r}") from error
    except HfHubHTTPError as error:
        raise _http_error(name, endpoint, error.response.status_code) from error
    except (httpx2.TransportError, FileMetadataError, LocalEntryNotFoundError) as error:
        reason = describe_system_error(error).partition("\n")[0]
        raise HubUnreachable(f"{name}: {endpoint} cannot be reached ({reason or type(error).__name__})") from error


def _http_error(name: HubName, endpoint: str, status: int) -> HubError:
    if status in (UNAUTHORIZED, FORBIDDEN):
        return HubError(f"{name}: {endpoint} refuses access ({status}): set HF_TOKEN to a valid token")
    if status >= SERVER_ERRORS:
        return HubUnreachable(f"{name}: {endpoint} answers with status {status}; try again later")
    return HubError(f"{name}: {endpoint} answers with status {status}")
