"""Adadelta for JAX: the paper's recurrence, in place."""

from adadelta_tx._diagnostics import effective_learning_rate as effective_learning_rate
from adadelta_tx._transform import adadelta as adadelta
from adadelta_tx._transform import scale_by_adadelta as scale_by_adadelta

__version__ = "0.1.0"
