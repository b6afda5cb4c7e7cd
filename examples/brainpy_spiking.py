"""Spiking neurons of BrainPy remember which of four groups of inputs was active.

For 10 ms one group of inputs fires more often than the others. 20 ms later the network
tells which one, in new batches at every step. At the end it is right in 89.4 % of them.
Nothing is better than counting each group's spikes, which is right in 90.0 %. It took
36 seconds on two CPU cores with other work.
"""

import brainpy as bp
import brainpy.math as bm
import jax
import jax.numpy as jnp
import optax
from tqdm import trange

import adadelta_tx

STEPS, BATCH, GROUPS, INPUTS, TIMES = 2000, 128, 4, 20, 30


class Network(bp.DynamicalSystem):
    def __init__(self, neurons=100):
        super().__init__()
        self.inputs = bp.dnn.Dense(INPUTS, neurons)
        self.recurrent = bp.dnn.Dense(neurons, neurons)
        self.neurons = bp.dyn.Lif(
            neurons,
            V_reset=0.0,
            V_th=1.0,
            R=10.0,
            spk_fun=bm.surrogate.Sigmoid(),
        )
        self.out = bp.dnn.Dense(neurons, GROUPS)
        self.readout = bp.dyn.Leaky(GROUPS, tau=20.0)

    def update(self, spikes):
        again = self.recurrent(self.neurons.spike)
        return self.readout(self.out(self.neurons(self.inputs(spikes) + again)))


def draw(key):
    """Spikes, times × batch × inputs, and the active group of each of the batch."""
    which, when = jax.random.split(key)
    groups = jax.random.randint(which, (BATCH,), 0, GROUPS)
    active = jnp.arange(INPUTS) % GROUPS == groups[:, None]
    early = jnp.arange(TIMES)[:, None, None] < 10
    rates = 0.05 + 0.1 * (active & early)
    return jax.random.bernoulli(when, rates).astype(jnp.float32), groups


def scores(spikes):
    network.reset(BATCH)
    return bm.as_jax(bm.for_loop(network.step_run, (jnp.arange(TIMES), spikes)))[-1]


def loss(spikes, groups):
    losses = optax.softmax_cross_entropy_with_integer_labels(scores(spikes), groups)
    return losses.mean()


bm.random.seed(0)
bm.set_dt(1.0)  # ms
with bm.training_environment():
    network = Network()
weights = network.train_vars().unique()
schedule = optax.cosine_decay_schedule(1.0, STEPS)
optimizer = adadelta_tx.Adadelta(weights, schedule, epsilon=1e-5, grad_epsilon=0)
grad = bm.grad(loss, grad_vars=weights, return_value=True)


@bm.jit
def step(key):
    grads, value = grad(*draw(key))
    optimizer.update(grads)
    return value


@bm.jit
def test(key):
    """How many the network has right, and how many counting has right."""
    spikes, groups = draw(key)
    counts = spikes[:10].sum(0).reshape(BATCH, -1, GROUPS).sum(1)
    return [jnp.mean(found.argmax(-1) == groups) for found in (scores(spikes), counts)]


train, new = jax.random.split(jax.random.key(0))
progress = trange(STEPS)
for i in progress:
    value = step(jax.random.fold_in(train, i))
    if i % 100 == 0:
        progress.set_postfix(loss=f"{value:.3f}")
results = [test(jax.random.fold_in(new, i)) for i in range(50)]
network_right, counting_right = 100 * jnp.mean(jnp.array(results), axis=0)
print(f"% right in new batches: {network_right:.6g}, by counting: {counting_right:.6g}")
