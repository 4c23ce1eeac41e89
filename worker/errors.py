"""Errors of the worker.

WorkerError
├── ResumeError        a resume point cannot be used; the job starts from the beginning
└── TrajectoryError    one image cannot be made; other jobs are not affected (has a `code`)
"""


class WorkerError(Exception):
    """Base class of this package's errors."""


class ResumeError(WorkerError):
    """A resume point is damaged, or belongs to another plan or shape."""


class TrajectoryError(WorkerError):
    """One image cannot be made. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
