"""Objects with unique names: what BrainPy's base class is there."""

import threading
import weakref
from collections import defaultdict
from itertools import count
from typing import TYPE_CHECKING, Any

from adadelta_tx._core import hints
from adadelta_tx._object.variables import assign, imported, is_number, kind_of, like

_owners: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_numbers: defaultdict[str, count] = defaultdict(count)
lock = threading.RLock()


class Node:
    """An object with variables, and a name that no other one in use has."""

    _is_made = False

    @property
    def name(self) -> str:
        """A valid identifier; assigning ``None`` takes the next automatic one."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        with lock:
            name = self.unique_name(name)
            old = vars(self).get("_name", name)
            if _owners.get(old) is self:
                del _owners[old]
            _owners[name] = self
            self._name = name

    def unique_name(self, name: str | None = None, type_: str | None = None) -> str:
        """The name itself if it is free, or the next automatic one of ``type_``."""
        if name is None:
            type_ = type_ or type(self).__name__
            with lock:
                names = (f"{type_}{number}" for number in _numbers[type_])
                return next(name for name in names if name not in _owners)
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"A name must be a valid identifier, got {name!r}.")
        owner = _owners.get(name, self)
        if owner is not self:
            raise ValueError(
                f"The name {name!r} is in use by {owner!r}. Choose another one, "
                "delete that object, or call adadelta_tx.clear_name_cache()."
            )
        return name

    def vars(self, method: str = "absolute", level: int = -1) -> dict[str, Any]:
        """Its variables and, unless ``level`` is 0, its learning rate's, by name."""
        absolute = method == "absolute"
        own = self.implicit_vars  # pyright: ignore[reportAttributeAccessIssue]
        parts = {self.name if absolute else "": own}
        lr = vars(self).get("lr")
        if lr is not None and level != 0:
            parts[lr.name if absolute else "lr"] = lr.vars("relative", level=0)
        return {
            f"{part}.{key.lstrip('.')}".lstrip("."): variable
            for part, own in parts.items()
            for key, variable in own.items()
        }

    def train_vars(self) -> dict[str, Any]:
        """The variables being trained, by the names that they were given."""
        return {**vars(self).get("vars_to_train", {})}

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by a call of the class, which makes BrainPy's once that is imported.
        return object.__new__, (type(self),), vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keeps the name, or takes one with another number if that is in use."""
        vars(self).update(state)
        try:
            self.name = self._name
        except Exception:  # of two libraries, which have no error in common
            kind = self._name.rstrip("0123456789")
            self.name = self.unique_name(type_=kind)

    def __setattr__(self, key: str, value: Any) -> None:
        """Sets an attribute, or the number that is in a variable, as BrainPy does.

        A new attribute is for subclasses. In our own classes its name is misspelt.
        """
        old: Any = vars(self).get(key)
        if kind_of(old) and is_number(value):
            assign([old], [like(old.value, value)])
            return
        is_known = key in vars(self) or hasattr(type(self), key)
        ours = type(self).__module__.startswith("adadelta_tx.")
        if self._is_made and ours and not is_known and not key.startswith("_"):
            raise self._no_attribute(key)
        super().__setattr__(key, value)

    def _own(self, key: str) -> Any:
        """What a property sets, in vars() as BrainPy looks for it there."""
        if key not in vars(self):  # while it is made
            raise self._no_attribute(key)
        return vars(self)[key]

    if not TYPE_CHECKING:  # a type checker knows what there is

        def __getattr__(self, key: str) -> Any:
            raise self._no_attribute(key)

    def _no_attribute(self, key: str) -> AttributeError:
        # Python adds the nearest name where it shows the error.
        what = hints.without(type(self).__name__, "attribute", key, vars(self))
        return AttributeError(what, name=key, obj=self)


def clear_name_cache() -> None:
    """Frees all names, BrainPy's too, and restarts automatic ones at 0.

    Examples:
      >>> import adadelta_tx
      >>> adadelta_tx.clear_name_cache()
      >>> adadelta_tx.Adadelta().name
      'Adadelta0'
    """
    with lock:
        _owners.clear()
        _numbers.clear()
        if clear := imported("brainpy.math", "clear_name_cache"):
            clear()
