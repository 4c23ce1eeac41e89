"""What an error of the place for results means: not now, full, or never; the counterpart of `jobs.redis.refusals`.

- "Not now" passes by itself: no connection, a timeout, a server that is overloaded or fails. The front end answers 503
  with Retry-After, a worker waits and continues. An error that is unknown here counts as "not now".
- Full is "not now", too, but reading still works.
- "Never" needs an operator: rights, credentials, a bucket that does not exist. Programs refuse to start with it. If it
  appears later, they treat it as "not now".

s3fs raises OSErrors for the error codes of S3; the error of botocore is their cause.
"""

from __future__ import annotations

import errno

from denoised.jobs.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable

WHO = "the result store"  # what the messages begin with
FULL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT})
NEVER_ERRNO = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
FULL_CODES = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "507"}
)
NEVER_CODES = frozenset({"InvalidBucketName", "NoSuchBucket", "PermanentRedirect", "AuthorizationHeaderMalformed"})
NEVER_NAMES = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"})
SHOWN_CHARACTERS = 200


def result_error(error: Exception) -> StoreError:
    """The error of ours for one of fsspec or of the file system behind it."""
    reason = _reason(error)
    code = _code(error)
    number = error.errno if isinstance(error, OSError) else None
    if code in FULL_CODES or number in FULL_ERRNO:
        return StoreFull(f"{WHO} is full ({reason})")
    refused = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
    if refused or code in NEVER_CODES or number in NEVER_ERRNO or type(error).__name__ in NEVER_NAMES:
        return StoreRefused(f"{WHO} refuses access ({reason})")
    return StoreUnavailable(f"{WHO} does not answer ({reason})")


def _code(error: Exception) -> str | None:
    """The error code of S3, if there is one."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


def _reason(error: Exception) -> str:
    """One line; of an OSError without the path, which may hold the name of a user."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split())[:SHOWN_CHARACTERS] or type(error).__name__
