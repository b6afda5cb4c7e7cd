"""Adadelta as an object that updates variables, with BrainPy's interface."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
from jax.typing import DTypeLike

from adadelta_tx._accumulators import check_requested, parts, state_of, suffixes
from adadelta_tx._checkpoint import StrPath, load_states, save_states
from adadelta_tx._diagnostics import effective_learning_rate
from adadelta_tx._schedules import Schedule, current_rate, make_schedule
from adadelta_tx._transform import NUMBERS, flat_step, number, scale_by_adadelta
from adadelta_tx._variables import (
    Collector,
    assign,
    checked_grads,
    claim_name,
    free_name,
    trainable,
    variable_like,
)


class Adadelta:
    r"""The Adadelta optimizer as an object, for code in BrainPy's style.

    It has the arguments of ``brainpy.optimizers.Adadelta`` (2022) and stands where
    that or ``brainpy.optim.Adadelta`` (2.8) stood. The equations are those of
    :func:`adadelta_tx.adadelta`, with the weight decay :math:`\lambda` in
    :math:`x_t = (1 - \lambda) x_{t-1} - \alpha u_t`.

    Its accumulators are variables of the same family as those that it trains, so
    BrainPy's and brainstate's transformations track them. Under plain ``jax.jit``
    use :func:`adadelta_tx.adadelta`.

    Args:
      train_vars: A dict from names to the variables to train: BrainPy's, any
        ``brainstate.State`` or :class:`adadelta_tx.Variable`. ``None`` leaves that
        to :meth:`register_train_vars`, which BrainPy's trainers call.
      lr: Learning rate: a number of at least 0, an optax schedule (called with
        the number of updates so far) or a BrainPy ``Scheduler``. The default is
        the paper's 1. BrainPy printed 0.01 before 2.8.1, but did not use it:
        every run there was at 1.
      epsilon: :math:`\epsilon`, above 0.
      rho: :math:`\rho`, in [0, 1).
      name: A valid identifier that no living optimizer has. ``None`` takes the
        next of ``Adadelta0``, ``Adadelta1``, …
      weight_decay: :math:`\lambda`, in [0, 1]. ``None`` means 0.
      accumulator_dtype: As for :func:`adadelta_tx.adadelta`.

    Raises:
      TypeError: If ``train_vars`` is not a dict of variables, or a number is none.
      ValueError: If a number is out of its range, a variable stands in
        ``train_vars`` twice, or ``name`` is taken.

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

    def __init__(
        self,
        train_vars: Mapping[str, Any] | None = None,
        lr: Any = 1.0,
        epsilon: chex.Numeric = 1e-6,
        rho: chex.Numeric = 0.95,
        name: str | None = None,
        *,
        weight_decay: float | None = None,
        accumulator_dtype: DTypeLike | None = None,
    ) -> None:
        """See the class."""
        self.rho, self.epsilon = rho, epsilon
        self.weight_decay = 0.0 if weight_decay is None else weight_decay
        self.rho, self.epsilon, self.weight_decay = self.numbers().values()
        self.accumulator_dtype = check_requested(accumulator_dtype)
        self._suffixes = suffixes(self.accumulator_dtype)
        self.lr = make_schedule(lr)
        self.vars_to_train = Collector()
        self.implicit_vars = Collector()
        self.register_train_vars(train_vars)
        self._name = claim_name(self, name, type(self).__name__)

    def register_train_vars(self, train_vars: Mapping[str, Any] | None = None) -> None:
        """Adds variables to train, each with accumulators: zeros, or what it has.

        Args:
          train_vars: As for the class, with its errors; then nothing is added.
        """
        new = trainable(train_vars, known=self.vars_to_train)
        tx = scale_by_adadelta(accumulator_dtype=self.accumulator_dtype)
        trees, count = parts(tx.init({str(key): v.value for key, v in new.items()}))
        for variable in new.values() if isinstance(self.lr, Schedule) else ():
            self.lr.track_like(variable)
        for suffix, values in zip(self._suffixes, trees, strict=True):
            for key, variable in new.items():
                accumulator = variable_like(variable, values[str(key)])
                self.implicit_vars[f"{key}{suffix}"] = accumulator
        if count is not None and new and not self.vars_to_train:
            first = next(iter(new.values()))
            self.implicit_vars["codes_count"] = variable_like(first, count)
        self.vars_to_train.update(new)

    register_vars = register_train_vars

    def check_grads(self, grads: Mapping[str, Any]) -> None:
        """Checks that there is one gradient of the right shape for each variable.

        Raises:
          TypeError: If ``grads`` is not a dict.
          ValueError: If an entry is missing, unknown or of another shape: it is named.
        """
        checked_grads(grads, self.vars_to_train.dict())

    def update(self, grads: Mapping[str, Any]) -> None:
        """Updates all variables by one step, all at once or, on an error, none.

        Outside of any transformation it is one compiled call for all variables,
        compiled once per set of shapes. No array that a caller holds is reused.

        Args:
          grads: A dict from the variables' names to gradients of their shapes.

        Raises:
          TypeError, ValueError: If :meth:`check_grads` does.
          RuntimeError: If JAX traces the call and a variable is an
            :class:`adadelta_tx.Variable`, which it does not track. Of the others,
            brainstate raises its ``TraceContextError`` under plain ``jax.jit``.
        """
        variables = [*self.vars_to_train.values(), *self._accumulators()]
        values = [variable.value for variable in variables]
        pairs = zip(self.vars_to_train, values, strict=False)  # without accumulators
        arrays = checked_grads(grads, dict(pairs))
        names = tuple(map(str, self.vars_to_train))
        rate, fixed = current_rate(self.lr), tuple(self.numbers().values())
        assign(variables, flat_step(names, values, arrays, rate, fixed))
        self.lr.step_call()

    def effective_learning_rate(
        self, percentiles: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """By variable, what :func:`adadelta_tx.effective_learning_rate` returns."""
        stored = [variable.value for variable in self._accumulators()]
        state = state_of([*self.vars_to_train], stored)
        return effective_learning_rate(state, self.epsilon, percentiles=percentiles)

    def _accumulators(self) -> list[Any]:
        keys, own = self.vars_to_train, self.implicit_vars
        names = [f"{key}{suffix}" for suffix in self._suffixes for key in keys]
        return [own[name] for name in (*names, "codes_count") if name in own]

    def numbers(self) -> dict[str, float]:
        """rho, epsilon and the weight decay, each checked to be in its range."""
        return {key: number(key, getattr(self, key), *NUMBERS[key]) for key in NUMBERS}

    @property
    def name(self) -> str:
        """The optimizer's name; assigning ``None`` takes the next automatic one."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        self._name = claim_name(self, name, type(self).__name__)

    def unique_name(self, name: str | None = None, type_: str | None = None) -> str:
        """``name`` if it is free, or the next automatic name of ``type_``."""
        return free_name(self, name, type_ or type(self).__name__)

    def nodes(
        self, method: str = "absolute", level: int = -1, include_self: bool = True
    ) -> Collector:
        """This object and, unless ``level`` is 0, its learning rate's, by name."""
        if method not in ("absolute", "relative"):
            raise ValueError(f"method must be absolute or relative, got {method!r}.")
        absolute = method == "absolute"
        found = Collector({self.name if absolute else "": self} if include_self else {})
        if level != 0:
            found[self.lr.name if absolute else "lr"] = self.lr
        return found

    def vars(
        self, method: str = "absolute", level: int = -1, include_self: bool = True
    ) -> Collector:
        """The accumulators and the learning rate's counters, by name."""
        found = Collector()
        for path, node in self.nodes(method, level, include_self).items():
            own = self.implicit_vars if node is self else node.vars("relative", level=0)
            prefix = f"{path}." if path else ""
            found.update({prefix + key.lstrip("."): v for key, v in own.items()})
        return found

    def train_vars(
        self, method: str = "absolute", level: int = -1, include_self: bool = True
    ) -> Collector:
        """The variables being trained, by the names that they were given."""
        del method, level
        return Collector(self.vars_to_train if include_self else {})

    def save_states(
        self,
        filename: StrPath,
        variables: Mapping[str, Any] | None = None,
        **setting: Any,
    ) -> None:
        """Saves the state in a file, or leaves the file that was there as it is.

        Args:
          filename: A path; ``.npz`` (or no extension), ``.h5`` or ``.hdf5`` (needs
            h5py), ``.mat`` (scipy), ``.pkl`` or ``.pickle`` says the format.
          variables: A dict of variables or arrays to save. ``None`` is :meth:`vars`.
          **setting: ``compressed=True`` for a smaller ``.npz`` file.

        Raises:
          CheckpointError: If there is no such format, or it lacks a package.
          OSError: If the system does not write the file.
          ValueError: If two names are written alike.
        """
        save_states(self, filename, variables, **setting)

    def load_states(
        self,
        filename: StrPath,
        variables: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        """Loads a file of :meth:`save_states`, whatever the name then, or of BrainPy.

        Accumulators and counters become the file's, and so do rho, epsilon, weight
        decay and learning rate, which BrainPy does not store; a change is logged.

        Args:
          filename: A path; its extension says the format.
          variables: A dict of more variables to load, by their names in the file.
          verbose: Whether to log what is loaded, at level INFO.

        Raises:
          CheckpointError: If it is damaged or of other variables. Nothing has changed.
          OSError: If it cannot be opened: a missing one is a FileNotFoundError.
          TypeError: If ``variables`` is not a dict of variables.
        """
        load_states(self, filename, variables, verbose)

    def __repr__(self) -> str:
        shown = f"lr={self.lr!r}, epsilon={self.epsilon}, rho={self.rho}"
        return f"{type(self).__name__}({shown}, name={self.name!r})"
