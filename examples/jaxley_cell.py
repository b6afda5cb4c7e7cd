"""Jaxley finds the sodium conductance of a Hodgkin–Huxley cell from its voltage."""

import functools

import jax
import jax.numpy as jnp
import jaxley as jx
import optax
from jaxley.channels import HH
from jaxley.optimize.transforms import ParamTransform, SigmoidTransform

import adadelta_tx

EXPECTED = 0.12  # S/cm², the conductance of the cell that was recorded


def main(adadelta=adadelta_tx.adadelta):
    cell = jx.Cell(jx.Branch(jx.Compartment(), ncomp=2), parents=[-1])
    cell.insert(HH())
    cell.branch(0).loc(0.0).stimulate(jx.step_current(1.0, 1.0, 0.1, 0.025, 5.0))
    cell.branch(0).loc(1.0).record()
    cell.set("HH_gNa", EXPECTED)
    target = jx.integrate(cell)

    cell.make_trainable("HH_gNa", 0.2)
    transform = ParamTransform([{"HH_gNa": SigmoidTransform(0.01, 0.5)}])

    def loss(opt_params):
        voltage = jx.integrate(cell, params=transform.forward(opt_params))
        return jnp.mean((voltage - target) ** 2)

    tx = adadelta(optax.cosine_decay_schedule(1.0, 1000), rho=0.95)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(opt_params, state):
        updates, state = tx.update(jax.grad(loss)(opt_params), state, opt_params)
        return optax.apply_updates(opt_params, updates), state

    opt_params = transform.inverse(cell.get_parameters())
    state = tx.init(opt_params)
    for _ in range(1000):
        opt_params, state = step(opt_params, state)
    (found,) = transform.forward(opt_params)
    return found["HH_gNa"].item()


if __name__ == "__main__":
    print(f"sodium conductance: {main():.6g} S/cm², expected: {EXPECTED}")
