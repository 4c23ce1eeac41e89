"""The errors of a worker.

WorkerError
├── ModelConflict      another worker serves another model under the same name
├── ResumeError        a resume point cannot be used; the job starts over
└── TrajectoryError    one image cannot be made (has a `code`); other jobs in its batch are unaffected
"""


class WorkerError(Exception):
    """Base of all errors of this package."""


class ModelConflict(WorkerError):
    """Another worker serves a model with another digest under the same name."""


class ResumeError(WorkerError):
    """A resume point is damaged, or was saved under another plan or shape."""


class TrajectoryError(WorkerError):
    """One image cannot be made.

    Attributes:
        code: For programs; the message is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
