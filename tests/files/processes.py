"""One process of a data-parallel training run; test_processes.py starts them.

Arguments: the coordinator's port, this process's number, the mesh's shape as "4,2", a
folder for checkpoints, and the step after which process 1 dies, or "never".
"""

import os
import signal
import sys

import jax

STEPS, SAVED_EVERY, PROCESSES = 12, 4, 2


def main(port, number, shape, folder, dies_after):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(number))

    # JAX has to know of the other processes before these use it.
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from sklearn.datasets import load_digits

    import adadelta_tx

    digits = load_digits()
    images, labels = np.float32(digits.data / 16), digits.target
    axes = tuple(map(int, shape.split(",")))
    mesh = jax.make_mesh(axes, ("data", "zero"), (AxisType.Auto,) * 2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    spread = NamedSharding(mesh, PartitionSpec(("data", "zero")))
    tx = adadelta_tx.adadelta()

    def loss(params, x, y):
        x = jnp.tanh(x @ params["hidden"] + params["bias"])
        logits = x @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def start():
        rng = np.random.default_rng(0)
        return {
            "hidden": jnp.asarray(0.1 * rng.normal(size=(64, 32)), jnp.float32),
            "bias": jnp.zeros(32),
            "out": jnp.asarray(0.1 * rng.normal(size=(32, 10)), jnp.float32),
        }

    def run_of(params):
        return {"params": params, "state": tx.init(params)}

    def sharding(path, leaf):
        """Parameters are everywhere; the state is spread, and the batch, too."""
        return spread if "state" in str(path[0]) and leaf.ndim else everywhere

    like = jax.eval_shape(lambda: run_of(start()))
    shardings = jax.tree_util.tree_map_with_path(sharding, like)

    def step(run, x, y):
        value, grads = jax.value_and_grad(loss)(run["params"], x, y)
        updates, state = tx.update(grads, run["state"], run["params"])
        params = optax.apply_updates(run["params"], updates)
        return {"params": params, "state": state}, value

    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
    with ocp.CheckpointManager(folder) as manager:
        last = manager.latest_step()
        if last is None:
            last = -1
            run = jax.jit(lambda: run_of(start()), out_shardings=shardings)()
        else:
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                like,
                shardings,
            )
            run = manager.restore(last, args=ocp.args.StandardRestore(target))
        for i in range(last + 1, STEPS):
            batch = np.random.default_rng(i).integers(len(images), size=64)
            x, y = (
                jax.make_array_from_callback(a.shape, spread, a.__getitem__)
                for a in (images[batch], labels[batch])
            )
            run, value = step(run, x, y)
            print("loss", i, float(value).hex(), flush=True)
            if (i + 1) % SAVED_EVERY == 0:
                manager.save(i, args=ocp.args.StandardSave(run))
                manager.wait_until_finished()
            if (str(i), number) == (dies_after, "1"):
                os.kill(os.getpid(), signal.SIGKILL)
    shard = optax.tree.get(run["state"], "e_g")["hidden"].addressable_shards[0].data
    print("shard", *shard.shape, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
