"""Mean-field variational inference with BlackJAX: a linear regression.

The columns of x are orthogonal, so the posterior is normal without correlation, as the
approximation is, and the negative ELBO ends at minus the log evidence.
"""

import blackjax
import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import multivariate_normal, norm

import adadelta_tx

X = jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 5)
Y = X @ jnp.array([2, -1]) + jax.random.normal(jax.random.key(0), (20,))
# Without the weights, the observations are normal, with covariance 1 + 9 x xᵀ.
EVIDENCE = multivariate_normal.logpdf(Y, jnp.zeros(20), jnp.eye(20) + 9 * X @ X.T)


def log_density(w):
    return norm.logpdf(w, 0, 3).sum() + norm.logpdf(Y, X @ w, 1).sum()


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 5000))
vi = blackjax.meanfield_vi(log_density, tx, num_samples=10)
step = jax.jit(vi.step, donate_argnums=1)
state = vi.init(jnp.zeros(2))
for key in jax.random.split(jax.random.key(1), 5000):
    state, info = step(key, state)
print(f"negative ELBO: {info.elbo:.6g}, minus the log evidence: {-EVIDENCE:.6g}")
