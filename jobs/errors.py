"""What can go wrong with the store.

StoreError
├── StoreUnavailable   Redis does not answer
│   └── StoreFull      Redis answers, and has no memory for more
├── StoreUnfit         Redis is set up such that it may lose jobs
└── RecordError        what Redis holds of a job cannot be read
"""


class StoreError(Exception):
    """Base of all errors of this package."""


class StoreUnavailable(StoreError):
    """Redis could not be reached in time."""


class StoreFull(StoreUnavailable):
    """Redis is at its `maxmemory`: what is there stays, nothing new fits."""


class StoreUnfit(StoreError):
    """Redis drops keys by itself when its memory is full."""


class RecordError(StoreError):
    """A record that is damaged, or a newer front end's."""
