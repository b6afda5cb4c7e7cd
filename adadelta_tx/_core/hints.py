"""What to write instead of names that other libraries have: one dictionary for all."""

import functools
import inspect
from collections.abc import Callable, Container
from itertools import chain
from typing import ParamSpec, TypeVar

_SYNONYMS = (
    ("lr", "learning_rate"),
    ("eps", "epsilon"),
    ("grad_eps", "grad_epsilon"),
    ("params", "train_vars"),
)
_INSTEAD = {
    "init": "Optax and Flax want the transformation adadelta_tx.adadelta().",
    "learning_rate": "The transformation adadelta_tx.adadelta has one.",
    "load_state_dict": "Write load_states(file).",
    "lr": "The transformation adadelta_tx.adadelta has a learning_rate.",
    "momentum": "Adadelta has none.",
    "param_groups": "Write lr, epsilon, rho or weight_decay.",
    "params": "Pass them to init and update: state = tx.init(params).",
    "register_vars": "An Adadelta object has register_train_vars(train_vars).",
    "state_dict": "Write save_states(file), or vars() for the variables.",
    "step": "An Adadelta object has update(grads).",
    "train_vars": "Variables are for the object: adadelta_tx.Adadelta(train_vars).",
    "weight_decay_mask": "The transformation adadelta_tx.adadelta has one.",
    "zero_grad": "Gradients are new in each step, so there is nothing to reset.",
}
_P = ParamSpec("_P")
_T = TypeVar("_T")


def without(owner: str, kind: str, name: str, known: Container[str]) -> str:
    """What to say where ``owner`` has no argument or attribute of this name."""
    instead = _INSTEAD.get(name, "")
    for names in _SYNONYMS:
        for other in names:
            if name in names and other != name and other in known:
                instead = f"Write {other}."
    return f"{owner} has no {kind} {name!r}. {instead}".rstrip()


def for_arguments(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Add what to write instead to the error for an argument of another library."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapped(*args: _P.args, **named: _P.kwargs) -> _T:
        foreign = {*_INSTEAD, *chain(*_SYNONYMS)} - known.keys()
        for name in foreign.intersection(named):
            owner = f"{function.__qualname__}()"
            raise TypeError(without(owner, "argument", name, known))
        return function(*args, **named)

    return wrapped
