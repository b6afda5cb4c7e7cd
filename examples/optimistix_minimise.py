"""Optimistix minimises the distance to a matrix of low rank: Eckart and Young."""

import jax
import jax.numpy as jnp
import optax
import optimistix as optx

import adadelta_tx

A = jax.random.normal(jax.random.key(0), (5, 4)) / 3
# The best approximation of rank 2 leaves out the smallest singular values.
LEAST = jnp.sum(jnp.linalg.svd(A, compute_uv=False)[2:] ** 2)


def distance(factors, a):
    left, right = factors
    return jnp.sum((left @ right - a) ** 2)


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 2000))
solver = optx.OptaxMinimiser(tx, rtol=1e-5, atol=1e-5)
left, right = jax.random.split(jax.random.key(1))
start = jax.random.normal(left, (5, 2)), jax.random.normal(right, (2, 4))
solution = optx.minimise(distance, solver, start, args=A, max_steps=2000)
found = distance(solution.value, A)
print(f"squared distance: {found:.6g}, of the best matrix: {LEAST:.6g}")
