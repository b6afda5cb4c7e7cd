"""Variational inference with NumPyro: a normal mean under a normal prior.

The posterior is normal, as the guide is, so the negative ELBO ends at minus the log
evidence.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.stats import multivariate_normal
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import optax_to_numpyro

import adadelta_tx

Y = 3 + jax.random.normal(jax.random.key(0), (20,))
# Without the mean, the observations are normal, with covariance 1 + 100 between them.
EVIDENCE = multivariate_normal.logpdf(
    Y, jnp.zeros(20), jnp.eye(20) + 100 * jnp.ones((20, 20))
)


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0, 10))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1), obs=y)


tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 5000))
svi = SVI(model, AutoNormal(model), optax_to_numpyro(tx), Trace_ELBO(10))
result = svi.run(jax.random.key(1), 5000, Y, progress_bar=False)
loss = svi.evaluate(result.state, Y)
print(f"negative ELBO: {loss:.6g}, minus the log evidence: {-EVIDENCE:.6g}")
