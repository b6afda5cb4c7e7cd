"""Adadelta as one of BrainPy's optimizers: the only module that imports BrainPy."""

# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
# (BrainPy's classes stand before Node, so what both have is BrainPy's, with its types.)

import contextlib
from collections.abc import Iterator
from typing import Any

import brainpy.math as bm
from brainpy import errors
from brainpy.optim import CallBasedScheduler, Optimizer

from adadelta_tx._object import inputs, optimizer, schedules
from adadelta_tx._object.names import Node, lock


class MathError(errors.MathError, TypeError, ValueError):
    """BrainPy's error, which is a ``TypeError`` and a ``ValueError`` here too."""


@contextlib.contextmanager
def _as_math_error() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise MathError(*error.args) from None


class Schedule(schedules.Schedule, CallBasedScheduler, bm.BrainPyObject, Node):
    """A learning rate that is a scheduler of BrainPy's."""

    def _start(self) -> None:
        with lock:
            bm.BrainPyObject.__init__(self, self.unique_name(type_=self._type))
        schedules.track_like({"": bm.Variable(self.last_call.value)}, self)


class Adadelta(optimizer.Adadelta, Optimizer, bm.BrainPyObject, Node):
    """:class:`adadelta_tx.Adadelta` as a ``brainpy.optim.Optimizer``.

    ``adadelta_tx.Adadelta(...)`` makes one for BrainPy's variables, or without any once
    BrainPy is imported. Arguments and steps are those of that class; everything that
    BrainPy's base class gives its optimizers is BrainPy's. Where BrainPy raises a
    ``MathError``, the error is one too.

    Examples:
      >>> import adadelta_tx
      >>> import brainpy as bp
      >>> import brainpy.math as bm
      >>> w = bm.TrainVar(bm.ones(2))
      >>> opt = adadelta_tx.Adadelta({"w": w})
      >>> isinstance(opt, bp.optim.Optimizer), isinstance(opt, adadelta_tx.Adadelta)
      (True, True)
    """

    _schedule_type = Schedule
    _variable_type = bm.Variable
    _checked = staticmethod(_as_math_error()(inputs.checked_grads))
    register_train_vars = _as_math_error()(optimizer.Adadelta.register_train_vars)

    def _start(self, train_vars: Any, name: str | None) -> None:
        with lock:  # which BrainPy's names do not have
            Optimizer.__init__(self, self.lr, train_vars, name)
