"""What to write instead of names that other libraries have: one dictionary for all."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_INSTEAD = {
    "eps": "Write epsilon.",
    "grad_eps": "Write grad_epsilon.",
    "grad_epsilon": "Write grad_eps.",
    "epsilon": "Write eps.",
    "init": "Optax and Flax want the transformation adadelta_tx.adadelta().",
    "learning_rate": "Write lr.",
    "load_state_dict": "Write load_states(file).",
    "lr": "The transformation adadelta_tx.adadelta has learning_rate.",
    "momentum": "Adadelta has none.",
    "param_groups": "Write lr, epsilon, rho or weight_decay.",
    "params": "Pass them to init and update: state = tx.init(params).",
    "register_vars": "Write register_train_vars.",
    "state_dict": "Write save_states(file), or vars() for the variables.",
    "step": "Write update(grads).",
    "train_vars": "Variables are for the object: adadelta_tx.Adadelta(train_vars).",
    "weight_decay_mask": "The transformation adadelta_tx.adadelta has one.",
    "zero_grad": "Gradients are new in each step, so there is nothing to reset.",
}
_P = ParamSpec("_P")
_T = TypeVar("_T")


def without(owner: str, kind: str, name: str) -> str:
    """What to say where ``owner`` has no argument or attribute of this name."""
    return f"{owner} has no {kind} {name!r}. {_INSTEAD.get(name, '')}".rstrip()


def for_arguments(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Add what to write instead to the error for an argument of another library."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapped(*args: _P.args, **named: _P.kwargs) -> _T:
        for name in named:
            if name not in known and name in _INSTEAD:
                raise TypeError(without(f"{function.__qualname__}()", "argument", name))
        return function(*args, **named)

    return wrapped
