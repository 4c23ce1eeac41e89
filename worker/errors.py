"""What can go wrong between a queue and a picture.

WorkerError
├── ResumeError        what a job was to go on from cannot be used; it begins anew
└── TrajectoryError    one image cannot be made; its neighbours are not touched (has a `code`)
"""


class WorkerError(Exception):
    """Base of all errors of this package."""


class ResumeError(WorkerError):
    """A resume point that is damaged, or of another plan or shape."""


class TrajectoryError(WorkerError):
    """One image cannot be made. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
