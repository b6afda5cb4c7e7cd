"""The learning rate of an optimizer object: a number, or something that changes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adadelta_tx._core.hyperparameters import AT_LEAST_0, number
from adadelta_tx._object.names import Node
from adadelta_tx._object.variables import (
    Variable,
    array,
    assign,
    imported,
    kind_of,
    like,
    value_of,
)

_next = jax.jit(lambda count: count + 1)  # whose 1 is no transfer to the device
_choose = jax.jit(lambda rate, scheduled: jnp.where(rate < 0, scheduled, rate))


class Schedule(Node):
    """A learning rate with the interface of BrainPy's schedulers.

    Its numbers are variables, so that setting them needs no recompilation: the rate,
    which is below 0 while an optax schedule gives it, and the indices of the last
    update and the last epoch, -1 before the first.
    """

    _excluded_vars = ("_rate",)  # from BrainPy's vars()

    def __init__(self, lr: Any) -> None:
        """Takes a number of at least 0, a variable of one, or an optax schedule."""
        self._schedule: Any = lr if callable(lr) else None
        self._is_given = kind_of(lr) is not None
        self._rate: Any = lr
        if not self._is_given:
            first = -1.0 if callable(lr) else number("lr", lr, AT_LEAST_0)
            self._rate = Variable(array(first).astype(float))
        value = self._rate.value
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"lr must hold a floating-point scalar, got {lr!r}.")
        self.last_epoch: Any = Variable(np.int32(-1))
        self.last_call: Any = Variable(np.int32(-1))
        self._type = "Schedule" if callable(lr) else "Constant"
        self._start()
        self._is_made = True

    def _start(self) -> None:
        self.name = self.unique_name(type_=self._type)

    @property
    def lr(self) -> jax.Array:
        """The learning rate of the next update; setting it is :meth:`set_value`."""
        return self()

    @lr.setter
    def lr(self, value: Any) -> None:
        restore_rate(self, number("lr", value, AT_LEAST_0))

    def set_value(self, value: Any) -> None:
        """Sets the learning rate, from now on also in place of a schedule."""
        self.lr = value

    def __call__(self, i: Any = None) -> jax.Array:
        """The learning rate of update ``i``, counted from 0; the next, by default."""
        rate = self._rate.value
        if self._schedule is None:
            return rate
        i = _next(self.last_call.value) if i is None else i
        with jax.transfer_guard("allow"):  # of numbers, as optax's schedules have them
            scheduled = like(rate, value_of(self._schedule(i)))
        return _choose(like(rate, rate), scheduled)

    def __float__(self) -> float:
        return float(jax.device_get(self()))

    def step_call(self) -> None:
        """Counts an update."""
        assign([self.last_call], [_next(self.last_call.value)])

    def step_epoch(self) -> None:
        """Counts an epoch, as BrainPy's trainers tell it."""
        assign([self.last_epoch], [_next(self.last_epoch.value)])

    @property
    def implicit_vars(self) -> Mapping[str, Any]:
        """The counters, and a learning rate given as a variable, by their names."""
        given = {"lr": self._rate} if self._is_given else {}
        return {**given, "last_epoch": self.last_epoch, "last_call": self.last_call}

    def __repr__(self) -> str:
        rate = self._rate.value
        if not isinstance(rate, Tracer):
            rate = jax.device_get(rate)  # 0.1 as 0.1
        if self._schedule is not None and (isinstance(rate, Tracer) or rate < 0):
            rate = self._schedule
        return f"{self._type}(lr={rate})"


def make_schedule(lr: Any, kind: type[Schedule]) -> Any:
    """``lr`` behind a scheduler's interface; a BrainPy scheduler as it is."""
    if isinstance(lr, (Schedule, imported("brainpy.optim", "Scheduler"))):
        return lr
    if isinstance(lr, Mapping):
        raise TypeError(
            f"lr must be a learning rate, got a dict of {len(lr)}. The variables come "
            "first here: Adadelta(train_vars, lr)."
        )
    if isinstance(lr, imported("braintools.optim", "LRScheduler")):
        raise TypeError(
            f"lr is braintools' {type(lr).__name__}, which must be stepped by hand and "
            "returns the negative of the rate. Pass an optax schedule or a scheduler "
            "of brainpy.optim, or set the rate after each of its steps: "
            "opt.lr.set_value(scheduler.get_last_lr()[0])."
        )
    return kind(lr)


def track_like(variables: Mapping[str, Any], schedule: Any) -> None:
    """Lets the transformations that track variables track a schedule's numbers too."""
    kinds = {kind_of(variable) for variable in variables.values()} - {Variable}
    if not kinds or not isinstance(schedule, Schedule):
        return
    if schedule._is_given and isinstance(schedule._rate, Variable):
        raise ValueError(
            "lr is an adadelta_tx.Variable, which the transformations of the trained "
            "variables do not track. Pass lr as a variable of their kind."
        )
    for key, own in list(vars(schedule).items()):
        if isinstance(own, Variable):
            setattr(schedule, key, next(iter(kinds))(own.value))


def current_rate(schedule: Any) -> Any:
    """The learning rate of the next update, on the device: a number in its range."""
    rate = value_of(schedule())
    number("lr", rate, AT_LEAST_0)
    return array(rate)


def rate(schedule: Any) -> float | None:
    """The learning rate that was set; ``None`` where a schedule gives it."""
    if not isinstance(schedule, Schedule):
        lr = value_of(getattr(schedule, "lr", None))
        return None if lr is None else float(jax.device_get(lr))
    lr = float(jax.device_get(schedule._rate.value))
    return None if schedule._schedule is not None and lr < 0 else lr


def restore_rate(schedule: Any, lr: Any) -> None:
    """Sets what :func:`rate` told: a number, or ``None`` for the optax schedule."""
    if not isinstance(schedule, Schedule):
        old = value_of(schedule.lr)
        schedule.lr = like(old, lr) if kind_of(schedule.lr) else lr
        return
    if lr is None and schedule._schedule is None:
        raise ValueError(f"{schedule!r} has no schedule for the learning rate.")
    new = like(schedule._rate.value, -1.0 if lr is None else lr)
    assign([schedule._rate], [new])
