"""The learning rate of an optimizer object: a number, or something that changes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adadelta_tx._transform import AT_LEAST_0, number
from adadelta_tx._variables import (
    Collector,
    Variable,
    claim_name,
    is_variable,
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
        self._lr_is_given = is_variable(lr)
        self._lr: Any = (
            lr if self._lr_is_given else Variable(jnp.asarray(math.nan, float))
        )
        if not (callable(lr) or self._lr_is_given):
            self.set_value(lr)
        self.name = claim_name(self, None, "Schedule" if callable(lr) else "Constant")

    @property
    def lr(self) -> jax.Array:
        """The learning rate that was set; NaN where an optax schedule gives it."""
        return self._lr.value

    @lr.setter
    def lr(self, value: Any) -> None:
        value = number("lr", value, *AT_LEAST_0)
        self._lr.value = jnp.asarray(value, dtype=self._lr.dtype)

    def set_value(self, value: Any) -> None:
        """Sets the learning rate, from now on also in place of a schedule."""
        self.lr = value

    def __call__(self, i: Any = None) -> jax.Array:
        """The learning rate of update ``i``, counted from 0; the next, by default."""
        if self._schedule is None:
            return self.lr
        i = self.last_call.value + 1 if i is None else i
        scheduled = jnp.asarray(self._schedule(i), dtype=self._lr.dtype)
        return jnp.where(jnp.isnan(self.lr), scheduled, self.lr)

    def step_call(self) -> None:
        """Counts an update."""
        self.last_call.value = self.last_call.value + 1

    def step_epoch(self) -> None:
        """Counts an epoch, as BrainPy's trainers tell it."""
        self.last_epoch.value = self.last_epoch.value + 1

    def vars(self, method: str = "absolute", **_: Any) -> Collector:
        """The counters, and a learning rate given as a variable, by their names."""
        prefix = f"{self.name}." if method == "absolute" else ""
        keys = ["lr"] * self._lr_is_given + ["last_epoch", "last_call"]
        variables = {"lr": self._lr, **vars(self)}
        return Collector((prefix + key, variables[key]) for key in keys)

    def track_like(self, variable: Any) -> None:
        """Lets the transformations that track ``variable`` track the numbers too."""
        for key in ["_lr"] * (not self._lr_is_given) + ["last_epoch", "last_call"]:
            setattr(self, key, variable_like(variable, getattr(self, key).value))

    def __repr__(self) -> str:
        kind = self.name.rstrip("0123456789")
        return f"{kind}(lr={self.lr if self._schedule is None else self._schedule})"


def make_schedule(lr: Any) -> Any:
    """``lr`` behind a scheduler's interface; a BrainPy scheduler as it is."""
    if hasattr(lr, "step_call") and hasattr(lr, "step_epoch"):
        return lr
    return Schedule(lr)
