"""Errors of the store, and of what is put into it.

StoreError
├── StoreUnavailable   Redis does not answer, or refuses for now (`jobs.redis.refusals`)
│   ├── JobUnconfirmed the connection broke while a job was accepted; nobody knows whether it was
│   ├── StoreFull      it answers but has no memory left
│   └── StoreRefused   it refuses until an operator changes something: rights, password, cluster mode
├── StoreUnfit         Redis is configured in a way that can lose jobs, or that we cannot work with
├── RecordError        a record in Redis cannot be read by this version
└── PictureError       a client's picture cannot be used
"""


class StoreError(Exception):
    """Base class of this package's errors."""


class StoreUnavailable(StoreError):
    """Redis did not answer in time, or refuses commands for now."""


class JobUnconfirmed(StoreUnavailable):
    """Redis was asked to accept a job, and the connection broke before its reply.

    Attributes:
        job: the id.
    """

    def __init__(self, job: str, reason: str) -> None:
        super().__init__(reason)
        self.job = job


class StoreFull(StoreUnavailable):
    """Redis has reached its `maxmemory`: existing data stays, nothing new fits."""


class StoreRefused(StoreUnavailable):
    """Redis refuses commands until an operator changes its configuration or our credentials."""


class StoreUnfit(StoreError):
    """Redis is configured in a way that can lose jobs, or that we cannot work with."""


class RecordError(StoreError):
    """A record is damaged, or requires a feature that this version does not know."""


class ArrayError(StoreError):
    """A file that cannot be used as an array; the message says why, in one line."""


class PictureError(StoreError):
    """A file is no picture, too large, animated or damaged; the message says which."""
