"""Adadelta for JAX: the paper's recurrence, in place."""

from adadelta_tx._core.accumulators import CodedState
from adadelta_tx._core.diagnostics import effective_learning_rate
from adadelta_tx._core.transform import adadelta, scale_by_adadelta
from adadelta_tx._files import CheckpointError
from adadelta_tx._object.names import clear_name_cache
from adadelta_tx._object.optimizer import Adadelta
from adadelta_tx._object.variables import TrainVar, Variable

__all__ = [
    "Adadelta",
    "CheckpointError",
    "CodedState",
    "TrainVar",
    "Variable",
    "adadelta",
    "clear_name_cache",
    "effective_learning_rate",
    "scale_by_adadelta",
]

__version__ = "0.1.0"
