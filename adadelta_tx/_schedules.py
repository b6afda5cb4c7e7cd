"""The learning rate of an optimizer object: a number, or something that changes."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adadelta_tx._names import Node
from adadelta_tx._transform import AT_LEAST_0, number
from adadelta_tx._variables import (
    Collector,
    Variable,
    assign,
    is_variable,
    kind_of,
    value_of,
)


class Schedule(Node):
    """A learning rate with the interface of BrainPy's schedulers.

    Its numbers are variables, so that setting them needs no recompilation: the
    rate, whether it was set in place of an optax schedule, and the indices of the
    last update and the last epoch, -1 before the first.
    """

    _excluded_vars = ("_rate", "_is_set")  # BrainPy's vars() has the others
    _elsewhere = {"step": "Read last_call, the index of the last update."}

    def __init__(self, lr: Any) -> None:
        """Takes a number of at least 0, a variable of one, or an optax schedule."""
        self._schedule = lr if callable(lr) else None
        self._is_given = is_variable(lr)
        if self._is_given:
            if lr.value.ndim or not jnp.issubdtype(lr.value.dtype, jnp.floating):
                raise ValueError(f"lr must hold a floating-point scalar, got {lr!r}.")
            self._rate: Any = lr
        else:
            rate = 0.0 if callable(lr) else number("lr", lr, *AT_LEAST_0)
            self._rate = Variable(jnp.asarray(rate, dtype=float))
        self._is_set = Variable(jnp.asarray(False))
        self.last_epoch = Variable(jnp.asarray(-1, dtype=jnp.int32))
        self.last_call = Variable(jnp.asarray(-1, dtype=jnp.int32))
        self._start("Schedule" if callable(lr) else "Constant")

    def _start(self, type_: str) -> None:
        self.name = self.unique_name(type_=type_)

    @property
    def lr(self) -> jax.Array:
        """The learning rate of the next update; setting it is :meth:`set_value`."""
        return self()

    @lr.setter
    def lr(self, value: Any) -> None:
        restore_rate(self, number("lr", value, *AT_LEAST_0))

    def set_value(self, value: Any) -> None:
        """Sets the learning rate, from now on also in place of a schedule."""
        self.lr = value

    def __call__(self, i: Any = None) -> jax.Array:
        """The learning rate of update ``i``, counted from 0; the next, by default."""
        rate = self._rate.value
        if self._schedule is None:
            return rate
        i = self.last_call.value + 1 if i is None else i
        scheduled = jnp.asarray(value_of(self._schedule(i)), dtype=rate.dtype)
        return jnp.where(self._is_set.value, rate, scheduled)

    def step_call(self) -> None:
        """Counts an update."""
        assign([self.last_call], [self.last_call.value + 1])

    def step_epoch(self) -> None:
        """Counts an epoch, as BrainPy's trainers tell it."""
        assign([self.last_epoch], [self.last_epoch.value + 1])

    @property
    def implicit_vars(self) -> Collector:
        """The counters, and a learning rate given as a variable, by their names."""
        given = {"lr": self._rate} if self._is_given else {}
        counters = {"last_epoch": self.last_epoch, "last_call": self.last_call}
        return Collector({**given, **counters})

    def track_like(self, variable: Any) -> None:
        """Lets the transformations that track ``variable`` track the numbers too.

        Raises:
          ValueError: If they cannot track a learning rate that was given.
        """
        kind = kind_of(variable)
        if kind is Variable:
            return
        if self._is_given and isinstance(self._rate, Variable):
            raise ValueError(
                "lr is an adadelta_tx.Variable, which the transformations of the "
                "trained variables do not track. Give lr as a variable of their kind."
            )
        for key in ("_rate", "_is_set", "last_epoch", "last_call"):
            old = vars(self)[key]
            if isinstance(old, Variable):
                setattr(self, key, kind(old.value))

    def __repr__(self) -> str:
        kind = self.name.rstrip("0123456789")
        known = not isinstance(self._is_set.value, Tracer)
        shown = rate(self) if known else self._schedule
        return f"{kind}(lr={self._schedule if shown is None else shown})"


def make_schedule(lr: Any, kind: type[Schedule]) -> Any:
    """``lr`` behind a scheduler's interface; a BrainPy scheduler as it is."""
    if hasattr(lr, "step_call") and hasattr(lr, "step_epoch"):
        return lr
    if isinstance(lr, Mapping):
        raise TypeError(
            f"lr must be a learning rate, got a dict of {len(lr)}. The variables come "
            "first here: Adadelta(train_vars, lr)."
        )
    if isinstance(lr, getattr(sys.modules.get("braintools.optim"), "LRScheduler", ())):
        raise TypeError(
            f"lr is braintools' {type(lr).__name__}, which is stepped by hand, and "
            "called for the negative of the rate. Give an optax schedule or a "
            "scheduler of brainpy.optim, or set the rate after each step of it: "
            "opt.lr.set_value(scheduler.get_last_lr()[0])."
        )
    return kind(lr)


def current_rate(schedule: Any) -> Any:
    """The learning rate of the next update.

    Raises:
      ValueError: If it is not a scalar, or is known and is not finite and at least 0.
    """
    rate = value_of(schedule())
    if jnp.ndim(rate):
        raise ValueError(f"lr must give a scalar, got one of shape {jnp.shape(rate)}.")
    if isinstance(rate, Tracer):
        return jnp.asarray(rate, dtype=float)
    return np.float64(number("lr", rate, *AT_LEAST_0))  # float32 without x64


def rate(schedule: Any) -> float | None:
    """The learning rate that was set; ``None`` where a schedule gives it."""
    if isinstance(schedule, Schedule):
        is_set = schedule._schedule is None or bool(schedule._is_set.value)
        return float(schedule._rate.value) if is_set else None
    lr = getattr(schedule, "lr", None)
    return None if lr is None else float(np.asarray(value_of(lr)))


def restore_rate(schedule: Any, lr: Any) -> None:
    """Sets what :func:`rate` told: a number, or ``None`` for the optax schedule.

    Raises:
      ValueError: If there is no schedule to give the rate.
    """
    if not isinstance(schedule, Schedule):
        old = getattr(schedule, "lr", None)
        like = value_of(old)
        schedule.lr = jnp.asarray(lr, like.dtype) if is_variable(old) else lr
        return
    if lr is None and schedule._schedule is None:
        raise ValueError(f"{schedule!r} has no schedule to give the learning rate.")
    rate = schedule._rate.value
    new = rate if lr is None else jnp.asarray(lr, dtype=rate.dtype)
    assign([schedule._rate, schedule._is_set], [new, jnp.asarray(lr is not None)])
