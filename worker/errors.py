"""The errors of a worker.

WorkerError
├── DeviceError        the device fails, or computes wrong results; the worker leaves
├── ModelConflict      another worker serves another model under the same name
├── ModelRemoved       a job waited for a model that operators have removed
├── ResumeError        a resume point cannot be used; the job starts over
└── TrajectoryError    one image cannot be made (has a `code`); other jobs in its batch are unaffected
"""


class WorkerError(Exception):
    """Base of all errors of this package."""


class DeviceError(WorkerError):
    """The device fails at what it did when the worker started.

    Attributes:
        has_wrong_results: It does not fail, but computes another result, so that none of its results can be trusted.
    """

    def __init__(self, message: str, *, has_wrong_results: bool = False) -> None:
        super().__init__(message)
        self.has_wrong_results = has_wrong_results


class ModelConflict(WorkerError):
    """Another worker serves a model with another digest under the same name."""


class ModelRemoved(WorkerError):
    """A job waited for a model that operators have removed."""


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
