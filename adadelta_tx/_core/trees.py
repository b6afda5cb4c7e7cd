"""Whether gradients, parameters, states and masks fit; what to say if they do not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath, all_leaves, keystr, tree_flatten_with_path

from adadelta_tx._core import accumulators
from adadelta_tx._core.accumulators import PyTree

_FIRST_STEP = 0.0045  # √(ε / (1 − ρ)) by default


def check(updates: optax.Updates, params: optax.Params | None, state: Any) -> None:
    """Check that all have one tree and, for each leaf, one shape.

    Where a gradient is None, the others may have anything.
    """
    if not accumulators.is_state(state):
        raise TypeError(
            "The state must be an optax.ScaleByAdaDeltaState or, for uint8, a "
            f"CodedState, as init returns it, got {type(state).__name__}."
        )
    leaves, treedef = tree_flatten_with_path(updates, is_leaf=is_none)
    for path, g in leaves:
        if g is not None:
            inexact_dtype(path, g, "gradient")
    trees = accumulators.trees_of(state)
    others = {f"the state's {key}": tree for key, tree in trees.items()}
    if params is not None:
        others = {"the parameters": params, **others}
    columns = []
    for name, tree in others.items():
        column = []
        try:
            column = treedef.flatten_up_to(tree)
            pairs = zip(leaves, column, strict=True)
            fits = all_leaves([leaf for (_, g), leaf in pairs if g is not None])
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"The gradients' tree does not match that of {name}: "
                f"{difference(updates, tree)}.{_instead(updates, tree, name)}"
            )
        columns.append(column)
    for (path, g), *row in zip(leaves, *columns, strict=True):
        if g is None:
            continue
        for name, leaf in zip(others, row, strict=True):
            if is_foreign(leaf):
                raise foreign(leaf, f"{name.capitalize().removesuffix('s')}{at(path)}")
            if jnp.shape(g) != jnp.shape(leaf):
                raise ValueError(
                    f"The gradient{at(path)} has shape {jnp.shape(g)}, but its shape "
                    f"in {name} is {jnp.shape(leaf)}."
                )
        stored = row if params is None else row[1:]
        if params is not None and jnp.iscomplexobj(g) != jnp.iscomplexobj(row[0]):
            raise TypeError(
                f"The gradient{at(path)} is {jnp.result_type(g)}, but its parameter is "
                f"{jnp.result_type(row[0])}: both must be real, or both complex."
            )
        check_stored(path, dict(zip(trees, stored, strict=True)))
    count = accumulators.count_of(state)
    if not isinstance(count, int | None) and (  # an int comes from JSON
        jnp.shape(count) or jnp.result_type(count) != jnp.int32
    ):
        raise TypeError(
            "The state's count must be an int32 scalar, got "
            f"{jnp.result_type(count)} of shape {jnp.shape(count)}."
        )


def check_stored(path: KeyPath, stored: Mapping[str, jax.Array]) -> None:
    """Checks that a leaf of a state has arrays that accumulators can be."""
    shapes = {name: jnp.shape(x) for name, x in stored.items()}
    if len(set(shapes.values())) > 1:
        both = " and ".join(f"{name} has {shape}" for name, shape in shapes.items())
        raise ValueError(f"The state{at(path)} has two shapes: {both}.")
    dtypes = {name: jnp.result_type(x) for name, x in stored.items()}
    for name, dtype in dtypes.items():
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name}{at(path)} is {dtype}. A complex state of optax.adadelta has "
                "averages of g², and Adadelta needs those of |g|²: training cannot "
                "continue from it. Start from tx.init(params)."
            )
        want = ["uint16"] if name == "codes" else accumulators.FLOATS
        if dtype.name not in want:
            cast = ""
            if dtype == jnp.float16:
                cast = (
                    " Cast the state: jax.tree.map(lambda x: x.astype(jnp.float32) if "
                    "x.dtype == jnp.float16 else x, state)."
                )
            raise TypeError(
                f"{name}{at(path)} is {dtype}; it must be {' or '.join(want)}.{cast}"
            )
    if len(set(dtypes.values())) > 1:
        both = " and ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(
            f"The state{at(path)} has two dtypes: {both}. Cast one to the other's."
        )


def check_chain(
    state: object, rates: Mapping[str, jax.typing.ArrayLike | optax.Schedule]
) -> None:
    """Check that a state is one of ``adadelta`` with this decay and learning rate."""
    if not isinstance(state, tuple) or len(state) != 3:
        got = type(state).__name__
        if type(state) is tuple and state:
            got += f" of {', '.join(type(x).__name__ for x in state)}"
        raise TypeError(
            "The second argument must be a state, as adadelta(…).init returns it, "
            f"got {got}. Write tx.update(grads, state, params)."
        )
    first, scaling, last = state
    if not accumulators.is_state(scaling):
        return  # which the check of the scaling tells
    for (name, rate), link in zip(rates.items(), (first, last), strict=True):
        inner = getattr(link, "inner_state", link)  # of a mask
        if callable(rate) and inner == ():
            raise TypeError(
                f"{name} is a schedule, but this state was made with a number, so it "
                "has no count. Pass a number, or start from tx.init(params)."
            )
        if not callable(rate) and "count" in getattr(inner, "_fields", ()):
            raise TypeError(
                f"{name} is a number, but this state was made with a schedule, whose "
                "count it has. Pass a schedule: for a number, optax.constant_schedule."
            )


def inexact_dtype(path: KeyPath, leaf: Any, what: str) -> jnp.dtype:
    """The dtype of a leaf that Adadelta can train or be trained with."""
    number_dtype = jnp.result_type(leaf) if isinstance(leaf, float | complex) else None
    dtype = getattr(leaf, "dtype", number_dtype)
    if is_foreign(leaf):
        raise foreign(leaf, f"The {what}{at(path)}")
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        kind = f"dtype {dtype}" if dtype is not None else f"type {type(leaf).__name__}"
        instead = "Keep it out of the parameters, or exclude it with optax.masked."
        if callable(leaf):
            instead = (
                "For an Equinox model, pass eqx.filter(model, eqx.is_inexact_array)."
            )
        raise TypeError(
            f"The {what}{at(path)} has {kind}; Adadelta needs floating-point or "
            f"complex numbers. {instead}"
        )
    if float(jnp.finfo(dtype).smallest_subnormal) > _FIRST_STEP:
        raise TypeError(
            f"The {what}{at(path)} has dtype {dtype}, in which Adadelta's first steps "
            "of about 0.004 become 0. Use bfloat16 or float32."
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def is_foreign(leaf: Any) -> bool:
    """Whether it is an array of another library, as far as its dtype tells."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):  # perhaps of keys
        return False
    try:
        jnp.dtype(getattr(leaf, "dtype", None))
    except TypeError:
        return True
    return False


def foreign(leaf: Any, what: str) -> TypeError:
    """The error for what :func:`is_foreign`."""
    kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
    instead = " Write jnp.array(x.detach().numpy())." if "torch" in kind else ""
    return TypeError(f"{what} must be an array of JAX or NumPy, got a {kind}.{instead}")


def difference(got: PyTree, want: PyTree, path: KeyPath = ()) -> str:
    """Where two trees differ first, and how. A None in the first fits anything."""
    here = keystr(path) or "the root"
    kinds = _kind_of(got), _kind_of(want)
    if kinds[0] != kinds[1]:
        return f"{here} is {kinds[0]}, not {kinds[1]}"
    ours, theirs = dict(_children(got)), dict(_children(want))
    names = [[keystr((*path, *key)) for key in x] for x in (ours, theirs)]
    missing, unknown = (sorted(set(a) - set(b)) for a, b in (reversed(names), names))
    told = []
    for names, what in ((missing, "missing"), (unknown, "unknown")):
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            told.append(f"{shown} {'are' if len(names) > 1 else 'is'} {what}")
    if told:
        return ", and ".join(told)
    for key, child in ours.items():
        other = theirs[key]
        alike = jax.tree.structure(child) == jax.tree.structure(other)
        if child is not None and not alike:
            return difference(child, other, (*path, *key))
    return f"the static fields of {kinds[0]} at {here} differ"


def _instead(got: PyTree, want: PyTree, name: str) -> str:
    """What to write where a library makes trees of two kinds; the name is of want's."""
    kinds = [type(tree).__name__ for tree in (got, want)]
    if kinds[0] == kinds[1]:
        return ""
    if type(got) is tuple and len(got) == 2:
        return " Write loss, gradients = jax.value_and_grad(…)(params)."
    if "FrozenDict" in kinds:
        return " flax.core.unfreeze makes a dict of a FrozenDict."
    if "State" in kinds and name == "the parameters":
        return " With flax.nnx, pass nnx.state(model, nnx.Param) as the parameters."
    if "State" in kinds:
        return (
            " With flax.nnx, gradients and averages are an nnx.State. To copy averages "
            "from a dict, write nnx.replace_by_pure_dict(state[1].e_g, averages)."
        )
    return ""


def _kind_of(node: PyTree) -> str:
    if node is None:
        return "None"
    if all_leaves([node]):
        return "an array"
    name = type(node).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _children(node: PyTree) -> list[tuple[KeyPath, PyTree]]:
    return tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]


def at(path: KeyPath) -> str:
    return f" at {keystr(path)}" if path else ""


def is_none(x: object) -> bool:
    return x is None
