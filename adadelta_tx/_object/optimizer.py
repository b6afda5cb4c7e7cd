"""Adadelta as an object that updates variables, with BrainPy's interface."""

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import jax
from jax.typing import ArrayLike

from adadelta_tx._core import accumulators
from adadelta_tx._core.accumulators import AccumulatorDType
from adadelta_tx._core.diagnostics import effective_learning_rate
from adadelta_tx._core.hints import for_arguments
from adadelta_tx._core.hyperparameters import warn_of_unusual
from adadelta_tx._core.recurrence import Hyperparameters
from adadelta_tx._core.transform import scale_by_adadelta
from adadelta_tx._object import checkpoint, schedules
from adadelta_tx._object.inputs import checked_grads, hyperparameter, trainable
from adadelta_tx._object.names import Node
from adadelta_tx._object.step import step
from adadelta_tx._object.variables import assign, imported, is_number, kind_of

_SUFFIXES = {"e_g": "_cache", "e_x": "_delta", "codes": "_codes"}
"""How the variables are called in which a parameter's accumulators are."""


class Adadelta(Node):
    r"""The Adadelta optimizer as an object, for code in BrainPy's style.

    It has the arguments of ``brainpy.optimizers.Adadelta`` (2022), and replaces that or
    ``brainpy.optim.Adadelta`` (2.8). The equations are those of
    :func:`adadelta_tx.adadelta`, except for the weight decay :math:`\lambda`:
    :math:`x_t = (1 - \lambda) x_{t-1} - \alpha u_t`.

    With BrainPy's variables, or without any once BrainPy is imported, this creates an
    ``adadelta_tx.brainpy.Adadelta``, which is also a ``brainpy.optim.Optimizer``.
    Derive a subclass for use with BrainPy from that one.

    The accumulators are variables of the same kind as those that it trains, so
    BrainPy's and brainstate's transformations track them. Under plain ``jax.jit``
    use :func:`adadelta_tx.adadelta`. ``lr``, ``epsilon``, ``rho`` and
    ``weight_decay`` can be assigned later. That reaches a step which BrainPy or
    brainstate compiled for ``lr`` only, if it was a number or an optax schedule.

    Args:
      train_vars: A dict from names to the variables to train: BrainPy's, any
        ``brainstate.State`` or :class:`adadelta_tx.Variable`. ``None`` leaves that
        to :meth:`register_train_vars`, which BrainPy's trainers call. All must be on
        the same devices.
      lr: Learning rate: a number of at least 0, an optax schedule (called with
        the number of updates so far), a BrainPy ``Scheduler``, or a variable. The
        default is the paper's 1. Before 2.8.1, BrainPy's default was 0.01, but
        was ignored: every run used 1.
      epsilon: :math:`\epsilon`, above 0. The third argument, as in 2022; in BrainPy
        2.8 that is ``weight_decay``.
      rho: :math:`\rho`, in [0, 1).
      name: A valid identifier that no optimizer in use has. ``None`` takes the
        next of ``Adadelta0``, ``Adadelta1``, …
      weight_decay: :math:`\lambda`, in [0, 1]. ``None`` means 0.
      grad_epsilon: As ``grad_eps`` for :func:`adadelta_tx.adadelta`.
      accumulator_dtype: As for :func:`adadelta_tx.adadelta`.

    Raises:
      TypeError: If ``train_vars`` is not a dict of variables, or a hyperparameter is
        not a number.
      ValueError: If a number is out of range, a variable given twice, or a name taken.

    Examples:
      >>> import adadelta_tx
      >>> import jax
      >>> import jax.numpy as jnp
      >>> w = adadelta_tx.TrainVar(jnp.array([1.0, -2.0]))
      >>> opt = adadelta_tx.Adadelta({"w": w})
      >>> for _ in range(3):
      ...     grads = jax.grad(lambda w: jnp.sum(w**2))(w.value)
      ...     opt.update({"w": grads})
      >>> [f"{x:.4f}" for x in w.value]
      ['0.9865', '-1.9864']
    """

    epsilon: Any = hyperparameter("epsilon")
    rho: Any = hyperparameter("rho")
    weight_decay: Any = hyperparameter("weight_decay")
    grad_epsilon: Any = hyperparameter("grad_epsilon")
    vars_to_train: Any
    """The variables being trained, by the names that they were given."""

    _schedule_type = schedules.Schedule
    _variable_type: Any = None  # or the only one

    @for_arguments
    def __init__(
        self,
        train_vars: Mapping[str, Any] | None = None,
        lr: Any = 1.0,
        epsilon: ArrayLike = 1e-6,
        rho: ArrayLike = 0.95,
        name: str | None = None,
        *,
        weight_decay: float | None = None,
        grad_epsilon: ArrayLike | None = None,
        accumulator_dtype: AccumulatorDType | None = None,
    ) -> None:
        """See the class."""
        order = "train_vars, lr, epsilon, rho, name"
        if epsilon is None or not isinstance(name, str | None):
            raise TypeError(
                f"The arguments are {order}; weight_decay is keyword-only. Got "
                f"epsilon={epsilon!r}, name={name!r}."
            )
        self.epsilon, self.rho, self.weight_decay = epsilon, rho, weight_decay
        self.grad_epsilon = grad_epsilon
        self._accumulator_dtype = accumulators.check_requested(accumulator_dtype)
        self.lr = lr
        warn_of_unusual(lr, rho, epsilon, ("lr", "epsilon"), order)
        if isinstance(train_vars, Mapping) and not train_vars:
            warnings.warn(
                "train_vars is empty, so there is nothing to train. With BrainPy, make "
                "the network in bm.training_environment(); otherwise, it has no "
                "trainable variables.",
                stacklevel=3,
            )
        self._start(train_vars, name)
        self._is_made = True

    if not TYPE_CHECKING:  # for which __init__ says it all

        @functools.wraps(__init__)  # and so does help()
        def __new__(cls, train_vars: Any = None, *_: Any, **__: Any) -> "Adadelta":
            """Takes BrainPy's class where the variables are BrainPy's."""
            kind = imported("brainpy.math", "Variable")
            given = train_vars.values() if isinstance(train_vars, Mapping) else ()
            if cls is Adadelta and kind and all(isinstance(x, kind) for x in given):
                from adadelta_tx import brainpy

                cls = brainpy.Adadelta
            return super().__new__(cls)

    def _start(self, train_vars: Any, name: str | None) -> None:
        self.vars_to_train, self.implicit_vars = {}, {}
        self.register_train_vars(train_vars)
        self.name = name

    @property
    def lr(self) -> Any:
        """The learning rate, as a scheduler. A number that is assigned is its rate."""
        return self._own("lr")

    @lr.setter
    def lr(self, value: Any) -> None:
        if is_number(value) and isinstance(vars(self).get("lr"), schedules.Schedule):
            self.lr.set_value(value)
            return
        value = schedules.make_schedule(value, self._schedule_type)
        schedules.track_like(vars(self).get("vars_to_train", {}), value)
        vars(self)["lr"] = value

    @property
    def accumulator_dtype(self) -> Any:
        """What the accumulators are stored in, which was told from the start."""
        return self._accumulator_dtype

    @accumulator_dtype.setter
    def accumulator_dtype(self, value: Any) -> None:
        raise AttributeError(
            f"accumulator_dtype stays {self.accumulator_dtype}. For {value}, make a "
            "new optimizer: Adadelta(train_vars, accumulator_dtype=…)."
        )

    def register_train_vars(self, train_vars: Mapping[str, Any] | None = None) -> None:
        """Adds variables to train. New ones start with accumulators of zeros.

        Args:
          train_vars: As for the class.

        Raises:
          TypeError, ValueError: As for the class. Nothing is added then.
        """
        new = trainable(train_vars, self.vars_to_train, self._variable_type)
        tx = scale_by_adadelta(accumulator_dtype=self.accumulator_dtype)
        with jax.transfer_guard("allow"):  # of a zero for each shape
            state: Any = tx.init([variable.value for variable in new.values()])
        schedules.track_like(new, self.lr)
        for tree, values in accumulators.trees_of(state).items():
            suffix = _SUFFIXES[tree]
            for (key, variable), value in zip(new.items(), values, strict=True):
                self.implicit_vars[f"{key}{suffix}"] = kind_of(variable)(value)
        count = accumulators.count_of(state)
        if count is not None and new:
            kind = kind_of(next(iter(new.values())))
            self.implicit_vars.setdefault("codes_count", kind(count))
        self.vars_to_train.update(new)

    def check_grads(self, grads: Mapping[str, Any]) -> None:
        """Checks that there is one gradient of the right shape for each variable.

        Raises:
          TypeError: If ``grads`` is not a dict, or a gradient is None, of integers, or
            complex for a real variable or the other way round.
          ValueError: If an entry is missing, unknown or of another shape, or variables
            are on different devices. The message names them.
        """
        self._checked(grads, {key: v.value for key, v in self.vars_to_train.items()})

    _checked = staticmethod(checked_grads)

    def update(self, grads: Mapping[str, Any]) -> None:
        """Updates all variables by one step or, on an error, none of them.

        Outside of any transformation it is one compiled call for all variables,
        compiled once per set of shapes. No array is donated.

        Args:
          grads: A dict from the variables' names to gradients of their shapes.

        Raises:
          TypeError, ValueError: If :meth:`check_grads` does, or the learning rate is
            known and is below 0.
          RuntimeError: If JAX traces the call and a variable is an
            :class:`adadelta_tx.Variable`, which it does not track. For BrainPy's and
            brainstate's, brainstate raises its ``TraceContextError`` in ``jax.jit``.
        """
        columns = self._columns()
        values = [[variable.value for variable in column] for column in columns]
        trained = dict(zip(self.vars_to_train, values[0], strict=True))
        arrays = self._checked(grads, trained)
        numbers = Hyperparameters(self.rho, self.epsilon, self.grad_epsilon)
        rate = schedules.current_rate(self.lr)
        new = step(values, arrays, rate, (numbers, self.weight_decay))
        assign([*chain(*columns)], [*chain(*new)])
        self.lr.step_call()

    def effective_learning_rate(
        self, percentiles: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """Like :func:`adadelta_tx.effective_learning_rate`: a dict by variable."""
        own, keys = self.implicit_vars, self.vars_to_train
        trees = {
            name: {key: own[f"{key}{_SUFFIXES[name]}"].value for key in keys}
            for name in accumulators.names_for(self.accumulator_dtype)
        }
        with jax.transfer_guard("allow"):  # of numbers
            return effective_learning_rate(
                accumulators.state_of(trees, count=0),
                self.epsilon,
                grad_eps=self.grad_epsilon,
                percentiles=percentiles,
            )

    def _columns(self) -> list[list[Any]]:
        """The variables of a step: those to train, what is kept of them, the count."""
        own, keys = self.implicit_vars, self.vars_to_train
        suffixes = map(_SUFFIXES.get, accumulators.names_for(self.accumulator_dtype))
        kept = [[own[f"{key}{suffix}"] for key in keys] for suffix in suffixes]
        count = [own["codes_count"]] if "codes_count" in own else []
        return [[*keys.values()], *kept, count]

    def save_states(
        self,
        file: str | os.PathLike[str] | BinaryIO,
        variables: Mapping[str, Any] | None = None,
        *,
        compressed: bool = False,
    ) -> None:
        """Saves the state to a file. If that fails, an older file stays as it was.

        Args:
          file: A path, whose extension selects the format: ``.npz`` (or none), ``.h5``,
            ``.hdf5``, ``.mat``, ``.pkl`` or ``.pickle``; or a binary file object, which
            gets an ``.npz`` file.
          variables: A dict of more variables, or arrays, to save. The trained ones are
            not among :meth:`vars`: pass ``network.vars()`` without hidden states.
          compressed: Whether to make an ``.npz`` file smaller.

        Raises:
          CheckpointError: If the format cannot hold the state, there is no such
            format, or its package is not installed.
          OSError: If the file cannot be written.
          RuntimeError: If JAX traces the call.
          TypeError: If ``variables`` is not a dict of variables or arrays by name.
          ValueError: If two names are the same in a file, or one is the optimizer's.
        """
        checkpoint.save_states(self, file, variables, compressed)

    def load_states(
        self,
        file: str | os.PathLike[str] | BinaryIO,
        variables: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        """Loads a file of :meth:`save_states`, of any optimizer's, or of BrainPy.

        Accumulators and counters are those of the file then. So are rho, epsilon,
        weight decay and learning rate, if it has them; a change is logged.
        A file is data, whoever wrote it: nothing in it is run.

        Args:
          file: A path, whose extension selects the format, or a binary file object of
            an ``.npz`` file, which is read from where it stands.
          variables: A dict of more variables to load, by their names in the file.
          verbose: Whether to log what is loaded, at level INFO.

        Raises:
          CheckpointError: If it is damaged or has other variables. Nothing has changed.
          OSError: If it cannot be opened; FileNotFoundError if there is none.
          TypeError: If ``variables`` is not a dict of variables.
          ValueError: If one of them has the name of one of the optimizer's own.
        """
        checkpoint.load_states(self, file, variables, verbose)

    def __repr__(self) -> str:
        keys = (
            *("lr", "epsilon", "rho", "name"),
            *("weight_decay", "grad_epsilon", "accumulator_dtype"),
        )
        shown = ", ".join(f"{key}={getattr(self, key)!r}" for key in keys)
        return f"{type(self).__name__}({shown})"
