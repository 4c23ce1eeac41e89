"""What can go wrong between a queue and a picture.

WorkerError
├── StoreUnavailable   Redis does not answer
└── TrajectoryError    one image cannot be made; its neighbours are not touched (has a `code`)
"""


class WorkerError(Exception):
    """Base of all errors of this package."""


class StoreUnavailable(WorkerError):
    """Redis could not be reached in time."""


class TrajectoryError(WorkerError):
    """One image cannot be made. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
