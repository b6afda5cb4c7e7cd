"""FlowJAX fits a normalizing flow to samples of a correlated normal distribution."""

import jax
import jax.numpy as jnp
from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from flowjax.train import fit_to_data

import adadelta_tx

COVARIANCE = jnp.array([[1.0, 0.8], [0.8, 1.0]])
# The entropy: no distribution gives the samples a higher mean log-probability.
ENTROPY = 0.5 * jnp.linalg.slogdet(2 * jnp.pi * jnp.e * COVARIANCE)[1]

tx = adadelta_tx.adadelta(1.0)
samples, flow, fit = jax.random.split(jax.random.key(0), 3)
x = jax.random.multivariate_normal(samples, jnp.zeros(2), COVARIANCE, (10_000,))
flow = masked_autoregressive_flow(flow, base_dist=Normal(jnp.zeros(2)), flow_layers=1)
flow, _ = fit_to_data(
    fit,
    flow,
    x[:5000],
    optimizer=tx,
    batch_size=100,
    max_epochs=20,
    show_progress=False,
)
loss = -flow.log_prob(x[5000:]).mean()
print(f"negative log-likelihood, new samples: {loss:.6g}, entropy: {ENTROPY:.6g}")
