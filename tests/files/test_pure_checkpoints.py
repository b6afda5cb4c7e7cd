"""Checkpoints of the pure state by Orbax and Flax: resumed runs give the same bits."""

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adadelta_tx
from tests.steps import compiled

TRANSFORMATIONS = {
    "plain": adadelta_tx.adadelta(),
    "uint8": adadelta_tx.adadelta(accumulator_dtype=jnp.uint8),
    "bfloat16": adadelta_tx.adadelta(accumulator_dtype=jnp.bfloat16),
    "schedule": adadelta_tx.adadelta(optax.linear_schedule(1.0, 0.0, 20)),
    "wrapped": optax.MultiSteps(
        optax.chain(optax.clip(1.0), adadelta_tx.adadelta(weight_decay=1e-3)), 2
    ),
}


def start():
    return {"w": jnp.ones((8, 4)), "b": jnp.ones(8, jnp.bfloat16), "c": jnp.ones(())}


def train(tx, params, state, first, last):
    step = compiled(tx)
    for i in range(first, last):
        rng = np.random.default_rng(i)
        grads = jax.tree.map(
            lambda x, rng=rng: jnp.asarray(rng.normal(size=x.shape), x.dtype), params
        )
        params, state = step(params, state, grads)
    return params, state


def by_standard_checkpointer(folder, saved, like):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "run", saved)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "run", like)


def by_manager(folder, saved, like):
    with ocp.CheckpointManager(folder / "run") as manager:
        manager.save(5, args=ocp.args.StandardSave(saved))
    with ocp.CheckpointManager(folder / "run") as manager:
        assert manager.latest_step() == 5
        return manager.restore(5, args=ocp.args.StandardRestore(like))


def by_flax(folder, saved, like):
    (folder / "run").write_bytes(flax.serialization.to_bytes(saved))
    return flax.serialization.from_bytes(like, (folder / "run").read_bytes())


WAYS = [by_standard_checkpointer, by_manager, by_flax]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", TRANSFORMATIONS)
def test_resumes_as_if_it_had_not_stopped(way, case, tmp_path):
    tx = TRANSFORMATIONS[case]
    params, state = train(tx, start(), tx.init(start()), 0, 5)
    restored = way(tmp_path, (params, state), (start(), tx.init(start())))
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, (params, state))
    chex.assert_trees_all_equal(restored, (params, state))
    want = train(tx, params, state, 5, 9)
    chex.assert_trees_all_equal(train(tx, *restored, 5, 9), want)


@pytest.mark.parametrize("way", WAYS)
def test_state_of_optax(way, tmp_path):
    """optax.adadelta's checkpoint is restored as a state of ours, and goes on alike."""
    theirs = optax.adadelta(1.0, rho=0.9, eps=1e-5)
    ours = adadelta_tx.adadelta(1.0, rho=0.9, eps=1e-5)
    params = {"w": jnp.ones((8, 4)), "b": jnp.ones(8)}
    saved = train(theirs, params, theirs.init(params), 0, 5)
    restored = way(tmp_path, saved, (params, ours.init(params)))
    chex.assert_trees_all_equal(restored, saved)
    want, _ = train(theirs, *saved, 5, 9)
    got, _ = train(ours, *restored, 5, 9)
    chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_restored_where_the_parameters_are(tmp_path):
    """Orbax puts a state on the devices that the target names, another mesh too."""
    tx = adadelta_tx.adadelta()
    params, state = train(tx, start(), tx.init(start()), 0, 3)

    def on(shape, tree):
        mesh = jax.make_mesh(shape, ("x", "y"))

        def placed(x):
            spec = PartitionSpec(*("x", "y")[: x.ndim])
            return jax.device_put(x, NamedSharding(mesh, spec))

        return jax.tree.map(placed, tree)

    saved = on((4, 2), (params, state))
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, on((2, 4), (params, state)))
    restored = by_standard_checkpointer(tmp_path, saved, like)
    chex.assert_trees_all_equal(restored, (params, state))
    for leaf, target in zip(
        jax.tree.leaves(restored), jax.tree.leaves(like), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim)
