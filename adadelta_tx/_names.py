"""Unique names, and the objects that have them: what BrainPy's base class is there."""

import itertools
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from adadelta_tx._variables import Collector

_owners: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_counters: dict[str, itertools.count] = {}
lock = threading.RLock()


class Node:
    """An object with a name that no other living one has, variables and children.

    Children are the attributes that have nodes themselves.
    """

    implicit_vars: Any
    """Its own variables by name."""

    _elsewhere: ClassVar[dict[str, str]] = {}
    """Attributes that it does not have, and a sentence on what to write instead."""

    @property
    def name(self) -> str:
        """The name; assigning ``None`` takes the next automatic one."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        with lock:
            name = self.unique_name(name)
            for old in [old for old, owner in _owners.items() if owner is self]:
                del _owners[old]
            _owners[name] = self
            self._name = name

    def unique_name(self, name: str | None = None, type_: str | None = None) -> str:
        """The name itself if it is free, or the next automatic one of ``type_``.

        Raises:
          ValueError: If it is not an identifier, or in use by a living object.
        """
        if name is None:
            type_ = type_ or type(self).__name__
            with lock:
                numbers = _counters.setdefault(type_, itertools.count())
                return next(
                    candidate
                    for candidate in (f"{type_}{number}" for number in numbers)
                    if candidate not in _owners
                )
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"A name must be a valid identifier, got {name!r}.")
        owner = _owners.get(name, self)
        if owner is not self:
            raise ValueError(
                f"The name {name!r} is in use by {owner!r}. Choose another one, "
                "delete that object, or call adadelta_tx.clear_name_cache()."
            )
        return name

    def nodes(
        self, method: str = "absolute", level: int = -1, include_self: bool = True
    ) -> Collector:
        """This object and, unless ``level`` is 0, its children, by name."""
        if method not in ("absolute", "relative"):
            raise ValueError(f"method must be absolute or relative, got {method!r}.")
        absolute = method == "absolute"
        found = Collector({self.name if absolute else "": self} if include_self else {})
        for key, child in vars(self).items():
            if level != 0 and hasattr(child, "nodes"):
                found[child.name if absolute else key] = child
        return found

    def vars(
        self, method: str = "absolute", level: int = -1, include_self: bool = True
    ) -> Collector:
        """The variables of :meth:`nodes`, by name."""
        found = Collector()
        for path, node in self.nodes(method, level, include_self).items():
            own = self.implicit_vars if node is self else node.vars("relative", level=0)
            prefix = f"{path}." if path else ""
            found.update({prefix + key.lstrip("."): v for key, v in own.items()})
        return found

    def train_vars(self) -> Collector:
        """The variables being trained, by the names that they were given."""
        return Collector(vars(self).get("vars_to_train", {}))

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (type(self),), vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        try:
            self.name = state["_name"]
        except Exception:  # ours or BrainPy's: a living object has it
            self.name = None

    if not TYPE_CHECKING:  # a type checker knows what there is

        def __getattr__(self, key: str) -> Any:
            hint = self._elsewhere.get(key)
            text = f"{type(self).__name__!r} object has no attribute {key!r}"
            raise AttributeError(
                f"{text}. {hint}" if hint else text, name=key, obj=self
            )


def clear_name_cache() -> None:
    """Makes all names free again, BrainPy's too, and automatic ones start at 0.

    Examples:
      >>> import adadelta_tx
      >>> adadelta_tx.clear_name_cache()
      >>> adadelta_tx.Adadelta().name
      'Adadelta0'
    """
    with lock:
        _owners.clear()
        _counters.clear()
        if "brainpy.math" in sys.modules:
            sys.modules["brainpy.math"].clear_name_cache()
