"""Jaxley finds the sodium conductance of a Hodgkin–Huxley cell from its voltage."""

import functools

import jax
import jax.numpy as jnp
import jaxley as jx
import optax
from jaxley.channels import HH
from jaxley.optimize.transforms import ParamTransform, SigmoidTransform

import adadelta_tx

cell = jx.Cell(jx.Branch(jx.Compartment(), ncomp=2), parents=[-1])
cell.insert(HH())
cell.branch(0).loc(0.0).stimulate(jx.step_current(1.0, 1.0, 0.1, 0.025, 5.0))
cell.branch(0).loc(1.0).record()
cell.set("HH_gNa", 0.12)
target = jx.integrate(cell)

cell.make_trainable("HH_gNa", 0.2)
transform = ParamTransform([{"HH_gNa": SigmoidTransform(0.01, 0.5)}])


def loss(opt_params):
    voltage = jx.integrate(cell, params=transform.forward(opt_params))
    return jnp.mean((voltage - target) ** 2)


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 1000))


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(opt_params, state):
    updates, state = tx.update(jax.grad(loss)(opt_params), state, opt_params)
    return optax.apply_updates(opt_params, updates), state


opt_params = transform.inverse(cell.get_parameters())
state = tx.init(opt_params)
for _ in range(1000):
    opt_params, state = step(opt_params, state)
(found,) = transform.forward(opt_params)
value = found["HH_gNa"].item()
print(f"sodium conductance: {value:.6g} S/cm², of the recorded cell: 0.12")
