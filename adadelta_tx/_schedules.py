"""The learning rate of an optimizer object: a number, or something that changes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adadelta_tx._transform import AT_LEAST_0, number
from adadelta_tx._variables import (
    Collector,
    Variable,
    assign,
    claim_name,
    is_variable,
    value_of,
    variable_like,
)


class Schedule:
    """A learning rate with the interface of BrainPy's schedulers.

    Its numbers are variables, so that setting them needs no recompilation: the
    rate that was set (NaN where an optax schedule gives it), the index of the
    last update and that of the last epoch, -1 before the first.
    """

    def __init__(self, lr: Any) -> None:
        """Takes a number of at least 0, a variable of one, or an optax schedule."""
        self._schedule = lr if callable(lr) else None
        self.last_call = Variable(jnp.asarray(-1, dtype=jnp.int32))
        self.last_epoch = Variable(jnp.asarray(-1, dtype=jnp.int32))
        self._is_given = is_variable(lr)
        if self._is_given:
            self._lr: Any = lr
            if self.lr.ndim or not jnp.issubdtype(self.lr.dtype, jnp.floating):
                raise ValueError(f"lr must hold a floating-point scalar, got {lr!r}.")
        else:
            rate = math.nan if callable(lr) else number("lr", lr, *AT_LEAST_0)
            self._lr = Variable(jnp.asarray(rate, dtype=float))
        self.name = claim_name(self, None, "Schedule" if callable(lr) else "Constant")

    @property
    def lr(self) -> jax.Array:
        """The learning rate that was set; NaN where an optax schedule gives it."""
        return self._lr.value

    @lr.setter
    def lr(self, value: Any) -> None:
        restore_rate(self, number("lr", value, *AT_LEAST_0))

    def set_value(self, value: Any) -> None:
        """Sets the learning rate, from now on also in place of a schedule."""
        self.lr = value

    def __call__(self, i: Any = None) -> jax.Array:
        """The learning rate of update ``i``, counted from 0; the next, by default."""
        if self._schedule is None:
            return self.lr
        i = self.last_call.value + 1 if i is None else i
        scheduled = jnp.asarray(self._schedule(i), dtype=self.lr.dtype)
        return jnp.where(jnp.isnan(self.lr), scheduled, self.lr)

    def step_call(self) -> None:
        """Counts an update."""
        assign([self.last_call], [self.last_call.value + 1])

    def step_epoch(self) -> None:
        """Counts an epoch, as BrainPy's trainers tell it."""
        assign([self.last_epoch], [self.last_epoch.value + 1])

    def vars(self, method: str = "absolute", **_: Any) -> Collector:
        """The counters, and a learning rate given as a variable, by their names."""
        prefix = f"{self.name}." if method == "absolute" else ""
        keys = ["lr"] * self._is_given + ["last_epoch", "last_call"]
        variables = {"lr": self._lr, **vars(self)}
        return Collector((prefix + key, variables[key]) for key in keys)

    def track_like(self, variable: Any) -> None:
        """Lets the transformations that track ``variable`` track the numbers too.

        Raises:
          ValueError: If they cannot track a learning rate that was given.
        """
        if isinstance(variable, Variable):
            return
        if self._is_given and isinstance(self._lr, Variable):
            raise ValueError(
                "lr is an adadelta_tx.Variable, which the transformations of the "
                "trained variables do not track. Give lr as a variable of their kind."
            )
        for key in ("_lr", "last_epoch", "last_call"):
            if isinstance(getattr(self, key), Variable):
                setattr(self, key, variable_like(variable, getattr(self, key).value))

    def __repr__(self) -> str:
        kind = self.name.rstrip("0123456789")
        return f"{kind}(lr={self.lr if self._schedule is None else self._schedule})"


def make_schedule(lr: Any) -> Any:
    """``lr`` behind a scheduler's interface; a BrainPy scheduler as it is."""
    if hasattr(lr, "step_call") and hasattr(lr, "step_epoch"):
        return lr
    if isinstance(lr, Mapping):
        raise TypeError(
            f"lr must be a learning rate, got a dict of {len(lr)}. The variables come "
            "first here: Adadelta(train_vars, lr)."
        )
    return Schedule(lr)


def current_rate(schedule: Any) -> jax.Array:
    """The learning rate of the next update.

    Raises:
      ValueError: If it is not a scalar.
    """
    rate = jnp.asarray(value_of(schedule()), dtype=float)
    if rate.ndim:
        raise ValueError(f"lr must give a scalar, got one of shape {rate.shape}.")
    return rate


def rate(schedule: Any) -> float | None:
    """The learning rate that was set; ``None`` where a schedule gives it."""
    lr = float(np.asarray(value_of(getattr(schedule, "lr", math.nan))))
    return None if math.isnan(lr) else lr


def restore_rate(schedule: Any, lr: float | None) -> None:
    """Sets what :func:`rate` told, ``None`` included."""
    if isinstance(schedule, Schedule):
        lr = math.nan if lr is None else lr
        assign([schedule._lr], [jnp.asarray(lr, dtype=schedule.lr.dtype)])
    else:
        schedule.lr = lr
