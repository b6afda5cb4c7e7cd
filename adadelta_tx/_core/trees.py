"""Whether gradients, parameters, states and masks fit; what to say if they do not."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import KeyPath, keystr, tree_flatten_with_path

from adadelta_tx._core import accumulators


def aligned(updates: Any, others: dict[str, Any]) -> tuple[list[Any], Any, list[Any]]:
    """The updates' leaves with paths, their treedef, and the leaves of other trees.

    Raises:
      TypeError: If an update is not a floating-point or complex array.
      ValueError: If another tree, or the shape of one of its leaves, is not that of the
        updates. Where an update is None, the others may have anything.
    """
    leaves, treedef = tree_flatten_with_path(updates, is_leaf=is_none)
    for path, g in leaves:
        if g is not None:
            inexact_dtype(path, g, "gradient")  # or a TypeError
    columns = []
    for name, tree in others.items():
        try:
            column = treedef.flatten_up_to(tree)
        except (TypeError, ValueError):
            column = None
        pairs = [] if column is None else zip(leaves, column, strict=True)
        kept = [(path, g, leaf) for (path, g), leaf in pairs if g is not None]
        if column is None or not jax.tree_util.all_leaves([x for *_, x in kept]):
            raise ValueError(
                f"The gradients' tree does not match that of {name}: "
                f"{_difference(updates, tree)}.{_instead(updates, tree)}"
            )
        for path, g, leaf in kept:
            if jnp.shape(g) != jnp.shape(leaf):
                raise ValueError(
                    f"The gradient{_at(path)} has shape {jnp.shape(g)}, but its shape "
                    f"in {name} is {jnp.shape(leaf)}."
                )
        columns.append(column)
    return leaves, treedef, columns


def check_params(updates: Any, params: Any) -> None:
    if params is None:
        return
    leaves, _, (column,) = aligned(updates, {"the parameters": params})
    for (path, g), p in zip(leaves, column, strict=True):
        if g is not None and jnp.iscomplexobj(g) != jnp.iscomplexobj(p):
            raise TypeError(
                f"The gradient{_at(path)} is {jnp.result_type(g)}, but its parameter "
                f"is {jnp.result_type(p)}: both must be real, or both complex."
            )


def check_stored(path: KeyPath, stored: dict[str, Any]) -> None:
    """Checks that a leaf of a state has arrays that accumulators can be."""
    shapes = {name: jnp.shape(x) for name, x in stored.items()}
    if len(set(shapes.values())) > 1:
        both = " and ".join(f"{name} has {shape}" for name, shape in shapes.items())
        raise ValueError(f"The state{_at(path)} has two shapes: {both}.")
    dtypes = {name: jnp.result_type(x) for name, x in stored.items()}
    for name, dtype in dtypes.items():
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name}{_at(path)} is {dtype}. A complex state of optax.adadelta has "
                "averages of g², and Adadelta needs those of |g|²: training cannot "
                "continue from it. Start from tx.init(params)."
            )
        want = ["uint16"] if name == "codes" else accumulators.FLOATS
        if dtype.name not in want:
            raise TypeError(
                f"{name}{_at(path)} is {dtype}; it must be {' or '.join(want)}."
            )
    if len(set(dtypes.values())) > 1:
        both = " and ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(
            f"The state{_at(path)} has two dtypes: {both}. Cast one to the other's."
        )


def check_chain(state: Any, weight_decay: Any, learning_rate: Any) -> None:
    """Checks that a state is one of ``adadelta`` with these numbers or schedules."""
    if not isinstance(state, tuple | list) or len(state) != 3:
        got = type(state).__name__
        if type(state) is tuple and state:
            got += f" of {', '.join(type(x).__name__ for x in state)}"
        raise TypeError(
            "The second argument must be a state, as adadelta(…).init returns it, "
            f"got {got}. Write tx.update(grads, state, params)."
        )
    for name, given, its in (
        ("weight_decay", weight_decay, state[0]),
        ("learning_rate", learning_rate, state[2]),
    ):
        inner = getattr(its, "inner_state", its)  # of a mask
        if callable(given) and inner == () and accumulators.is_state(state[1]):
            raise TypeError(
                f"{name} is a schedule, but this state was made with a number, so it "
                "has no count. Pass a number, or start from tx.init(params)."
            )


def check_mask(mask: Any, tree: Any) -> None:
    if mask is None:
        return
    if callable(mask):
        try:
            mask = mask(tree)
        except (AttributeError, TypeError) as error:  # as of a leaf's attributes
            raise TypeError(
                f"weight_decay_mask raised {error!r}. It gets all the parameters: "
                "lambda params: jax.tree.map(lambda x: x.ndim > 1, params)."
            ) from error
    leaves, treedef = tree_flatten_with_path(mask, is_leaf=is_none)
    try:
        subtrees = treedef.flatten_up_to(tree)
        for (path, leaf), subtree in zip(leaves, subtrees, strict=True):
            if not _is_boolean(leaf) and (leaf, subtree) != (None, None):
                raise TypeError(
                    f"weight_decay_mask{_at(path)} must be True or False, got {leaf!r}."
                )
    except ValueError:
        whole = jax.tree.map(lambda x: None, mask)  # a None fits anything
        raise ValueError(
            "weight_decay_mask must be a tree of booleans like the parameters, or a "
            f"prefix of it, but {_difference(whole, tree)}."
        ) from None


def _is_boolean(x: Any) -> bool:
    if isinstance(x, Tracer) or not hasattr(x, "dtype"):
        return isinstance(x, bool)
    return x.dtype == jnp.bool_ and jnp.ndim(x) == 0


def inexact_dtype(path: KeyPath, leaf: Any, what: str) -> jnp.dtype:
    number_dtype = jnp.result_type(leaf) if isinstance(leaf, float | complex) else None
    dtype = getattr(leaf, "dtype", number_dtype)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        kind = f"dtype {dtype}" if dtype is not None else f"type {type(leaf).__name__}"
        instead = "Keep it out of the parameters, or exclude it with optax.masked."
        if callable(leaf):
            instead = (
                "For an Equinox model, pass eqx.filter(model, eqx.is_inexact_array)."
            )
        raise TypeError(
            f"The {what}{_at(path)} has {kind}; Adadelta needs floating-point or "
            f"complex numbers. {instead}"
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def _difference(got: Any, want: Any, path: KeyPath = ()) -> str:
    """Where two trees differ first, and how. A None in the first fits anything."""
    at = keystr(path) or "the root"
    kinds = _kind(got), _kind(want)
    if kinds[0] != kinds[1]:
        return f"{at} is {kinds[0]}, not {kinds[1]}"
    ours, theirs = dict(_children(got)), dict(_children(want))
    names = [[keystr((*path, *key)) for key in x] for x in (ours, theirs)]
    missing, unknown = (sorted(set(a) - set(b)) for a, b in (reversed(names), names))
    for names, what in ((missing, "missing"), (unknown, "unknown")):
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            return f"{shown} {'are' if len(names) > 1 else 'is'} {what}"
    for key, child in ours.items():
        other = theirs[key]
        alike = jax.tree.structure(child) == jax.tree.structure(other)
        if child is not None and not alike:
            return _difference(child, other, (*path, *key))
    return f"the static fields of {kinds[0]} at {at} differ"


def _instead(got: Any, want: Any) -> str:
    """What to write where a library makes trees of two kinds."""
    kinds = [type(tree).__name__ for tree in (got, want)]
    if kinds[0] == kinds[1]:
        return ""
    if type(got) is tuple and len(got) == 2:
        return " Write loss, gradients = jax.value_and_grad(…)(params)."
    if "FrozenDict" in kinds:
        return " flax.core.unfreeze makes a dict of a FrozenDict."
    if "State" in kinds:
        return " With flax.nnx, pass nnx.state(model, nnx.Param) as the parameters."
    return ""


def _kind(node: Any) -> str:
    if node is None:
        return "None"
    if jax.tree_util.all_leaves([node]):
        return "an array"
    name = type(node).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _children(node: Any) -> list[tuple[KeyPath, Any]]:
    return tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]


def _at(path: KeyPath) -> str:
    return f" at {keystr(path)}" if path else ""


def is_none(x: Any) -> bool:
    return x is None
