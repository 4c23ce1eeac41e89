"""Errors of the store.

StoreError
├── StoreUnavailable   Redis does not answer
│   └── StoreFull      Redis answers but has no memory left
├── StoreUnfit         Redis is configured in a way that can lose jobs
└── RecordError        a record in Redis cannot be read by this version
"""


class StoreError(Exception):
    """Base class of this package's errors."""


class StoreUnavailable(StoreError):
    """Redis did not answer in time."""


class StoreFull(StoreUnavailable):
    """Redis has reached its `maxmemory`: existing data stays, nothing new fits."""


class StoreUnfit(StoreError):
    """Redis evicts keys when its memory is full."""


class RecordError(StoreError):
    """A record is damaged, or requires a feature that this version does not know."""
