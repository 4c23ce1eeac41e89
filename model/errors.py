"""What can go wrong with a model's files, data and tables.

ModelError
├── CheckpointError   a folder, config or tensor that cannot be served
├── PlanError         a sampler that does not exist or a number of steps that cannot be
├── DataError         a data set that is missing, broken or of the wrong shape
├── TrainingError     a run that cannot be started or resumed
├── EvaluationError   pictures that cannot be measured
└── KernelError       kernels that cannot be had on this machine
"""


class ModelError(Exception):
    """Base of all errors of this package; the message is one line for a person."""


class CheckpointError(ModelError):
    """A model folder was refused; names the file, the key and the cause."""


class PlanError(ModelError):
    """A plan was asked for that cannot be made; names the field, value and limit."""


class DataError(ModelError):
    """A data set was refused; says what is wrong and what to do."""


class TrainingError(ModelError):
    """A training run cannot start or go on; says why."""


class EvaluationError(ModelError):
    """Pictures cannot be measured; says why and what to do."""


class KernelError(ModelError):
    """The compiled kernels cannot be had here; says why."""
