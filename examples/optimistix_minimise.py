"""Optimistix minimises the distance to a matrix of low rank: Eckart and Young."""

import jax
import jax.numpy as jnp
import optax
import optimistix as optx

import adadelta_tx

A = jax.random.normal(jax.random.key(0), (5, 4)) / 3
# The best approximation of rank 2 leaves out the smallest singular values.
EXPECTED = float(jnp.sum(jnp.linalg.svd(A, compute_uv=False)[2:] ** 2))


def distance(factors, a):
    left, right = factors
    return jnp.sum((left @ right - a) ** 2)


def main(adadelta=adadelta_tx.adadelta):
    tx = adadelta(optax.cosine_decay_schedule(1.0, 2000), rho=0.95)
    solver = optx.OptaxMinimiser(tx, rtol=1e-5, atol=1e-5)
    left, right = jax.random.split(jax.random.key(1))
    start = jax.random.normal(left, (5, 2)), jax.random.normal(right, (2, 4))
    solution = optx.minimise(distance, solver, start, args=A, max_steps=2000)
    return float(distance(solution.value, A))


if __name__ == "__main__":
    print(f"squared distance: {main():.6g}, expected: {EXPECTED:.6g}")
