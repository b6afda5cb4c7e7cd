"""Weight decay as optax has it, with its states and masks; the recurrence adds it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.tree_util import tree_flatten_with_path

from adadelta_tx._core import trees
from adadelta_tx._core.accumulators import PyTree
from adadelta_tx._core.recurrence import Decayed


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule, mask: PyTree
) -> optax.GradientTransformation:
    """Like optax's, but the sum is left to the step, which can calculate it again."""
    counting = optax.add_decayed_weights(weight_decay)
    nothing = isinstance(weight_decay, float) and not weight_decay
    if mask is False:
        raise ValueError(
            "weight_decay_mask is False: nothing would decay. If it was a function, "
            'use optax.inject_hyperparams(…, static_args=("weight_decay_mask",)).'
        )
    if mask is not None and nothing:
        raise ValueError(
            "weight_decay_mask is given, but weight_decay is 0: nothing would decay. "
            "Pass both, or neither."
        )

    def add(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if nothing:
            return updates, state
        now: Any = weight_decay(state.count) if callable(weight_decay) else weight_decay
        decayed = jax.tree.map(
            lambda g, p: None if g is None else Decayed(g, p, now),
            updates,
            params,
            is_leaf=trees.is_none,
        )
        return decayed, counting.update((), state, ())[1]

    everywhere = optax.GradientTransformation(counting.init, add)
    if mask is None:
        return everywhere

    def masked_for(tree: PyTree) -> optax.GradientTransformation:
        # optax.tree.map_params comes without any leaves
        found = _mask_for(mask, tree) if jax.tree.leaves(tree) else mask
        return optax.masked(everywhere, found)

    def init_fn(params: optax.Params) -> optax.OptState:
        return masked_for(params).init(params)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return masked_for(params).update(updates, state, params)

    return optax.GradientTransformation(init_fn, update_fn)


def _mask_for(mask: PyTree, params: optax.Params) -> PyTree:
    """The tree of booleans that a mask is, or that it returns for the parameters."""
    # A module of booleans can be called as well, but is a mask, as in optax.
    if callable(mask) and all(map(callable, jax.tree.leaves(mask))):
        try:
            mask = mask(params)
        except (AttributeError, TypeError) as error:  # as of a leaf's attributes
            raise TypeError(
                f"weight_decay_mask raised {error!r}. It gets all the parameters: "
                "lambda params: jax.tree.map(lambda x: x.ndim > 1, params)."
            ) from error
    leaves, treedef = tree_flatten_with_path(mask, is_leaf=trees.is_none)
    try:
        subtrees = treedef.flatten_up_to(params)
        for (path, leaf), subtree in zip(leaves, subtrees, strict=True):
            if not _is_boolean(leaf) and (leaf, subtree) != (None, None):
                raise TypeError(
                    f"weight_decay_mask{trees.at(path)} must be True or False, "
                    f"got {leaf!r}."
                )
    except ValueError:
        whole = jax.tree.map(lambda x: None, mask)  # a None fits anything
        raise ValueError(
            "weight_decay_mask must be a tree of booleans like the parameters, or a "
            f"prefix of it, but {trees.difference(whole, params)}."
        ) from None
    return mask


def _is_boolean(x: Any) -> bool:
    if isinstance(x, Tracer) or not hasattr(x, "dtype"):
        return isinstance(x, bool)
    return x.dtype == jnp.bool_ and jnp.ndim(x) == 0
