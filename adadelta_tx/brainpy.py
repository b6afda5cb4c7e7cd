"""Adadelta as one of BrainPy's optimizers: the only module that imports BrainPy."""

# pyright: reportIncompatibleMethodOverride=false
# (BrainPy's classes stand before Node, so what both have is BrainPy's, with its types.)

from collections.abc import Mapping
from typing import Any

import brainpy.math as bm
from brainpy import errors
from brainpy.optim import CallBasedScheduler, Optimizer

from adadelta_tx._object import optimizer, schedules
from adadelta_tx._object.names import Node, lock, owners


class _Named(bm.BrainPyObject, Node):
    def unique_name(self, name: str | None = None, type_: str | None = None) -> str:
        """BrainPy's name, if no object without BrainPy has it."""
        with lock:
            found = super().unique_name(name, type_)
            while name is None and not isinstance(owners.get(found, self), _Named):
                found = super().unique_name(None, type_)
            if isinstance(owners.get(found, self), _Named):
                owners[found] = self  # which BrainPy has checked
            return Node.unique_name(self, found)


class Schedule(schedules.Schedule, CallBasedScheduler, _Named):
    """A learning rate that is a scheduler of BrainPy's."""

    def _start(self, type_: str) -> None:
        with lock:
            bm.BrainPyObject.__init__(self, self.unique_name(type_=type_))
        schedules.track_like({"": bm.Variable(self.last_call.value)}, self)


class Adadelta(optimizer.Adadelta, Optimizer, _Named):
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

    def _start(self, train_vars: Any, name: str | None) -> None:
        with lock:
            Optimizer.__init__(self, self.lr, train_vars, name)

    def register_train_vars(self, train_vars: Mapping[str, Any] | None = None) -> None:
        """See :meth:`adadelta_tx.Adadelta.register_train_vars`."""
        try:
            super().register_train_vars(train_vars)
        except (TypeError, ValueError) as error:
            raise MathError(*error.args) from None

    def _checked(self, grads: Any, values: dict[str, Any]) -> list[Any]:
        try:
            return super()._checked(grads, values)
        except (TypeError, ValueError) as error:
            raise MathError(*error.args) from None


class MathError(errors.MathError, TypeError, ValueError):
    """BrainPy's error, which is a ``TypeError`` and a ``ValueError`` here too."""
