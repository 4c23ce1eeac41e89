"""What can go wrong between a queue and a picture.

WorkerError
├── StoreUnavailable   Redis does not answer
│   └── StoreFull      Redis answers, and has no memory for more
├── StoreUnfit         Redis is set up such that it may lose jobs
├── RecordError        what Redis holds of a job cannot be read
├── ResumeError        what a job was to go on from cannot be used; it begins anew
└── TrajectoryError    one image cannot be made; its neighbours are not touched (has a `code`)
"""


class WorkerError(Exception):
    """Base of all errors of this package."""


class StoreUnavailable(WorkerError):
    """Redis could not be reached in time."""


class StoreFull(StoreUnavailable):
    """Redis is at its `maxmemory`: what is there stays, nothing new fits."""


class StoreUnfit(WorkerError):
    """Redis drops keys by itself when its memory is full."""


class RecordError(WorkerError):
    """A record that is damaged, or a newer front end's."""


class ResumeError(WorkerError):
    """A resume point that is damaged, or of another plan or shape."""


class TrajectoryError(WorkerError):
    """One image cannot be made. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
