"""The errors of the model package.

ModelError
├── CheckpointError   a model folder, config or tensor that cannot be used
├── HubError          a model on a hub that cannot be downloaded
│   └── HubUnreachable     the hub does not answer, or must not be asked
├── PlanError         a request that the model or its samplers do not support
├── DataError         a data set that is missing, broken or of the wrong shape
│   └── UnreadableImages   some of its image files
├── TrainingError     a training run that cannot start or resume
├── EvaluationError   images that cannot be evaluated
└── KernelError       compiled kernels that cannot be built or run on this machine
"""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 10
_REPR.maxlevel = 3


def abbreviate(value: object) -> str:
    """The `repr` of a value, shortened: a file may hold anything."""
    return _REPR.repr(value)


def shorten(text: str) -> str:
    """A text of at most 200 characters, without its middle if it was longer."""
    return text if len(text) <= 200 else f"{text[:99]}…{text[-100:]}"


class ModelError(Exception):
    """Base of all errors of this package; the message is one line for people."""


class CheckpointError(ModelError):
    """A model folder was refused; the message names the file, the key and the cause."""


class HubError(ModelError):
    """A model on a hub cannot be downloaded; the message says why and what to do."""


class HubUnreachable(HubError):
    """A hub does not answer, or must not be asked."""


class PlanError(ModelError):
    """A sampler, schedule or input is not supported; the message names the field, the value and the limit."""


class DataError(ModelError):
    """A data set was refused; the message says what is wrong and what to do."""


class UnreadableImages(DataError):
    """Some image files of a data set cannot be read; the message names them."""


class TrainingError(ModelError):
    """A training run cannot start or resume; the message says why."""


class EvaluationError(ModelError):
    """Images cannot be evaluated; the message says why and what to do."""


class KernelError(ModelError):
    """The compiled kernels are not available here; the message says why."""
