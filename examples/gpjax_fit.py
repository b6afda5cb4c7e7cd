"""GPJax fits a Gaussian process's hyperparameters by its marginal likelihood."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import optax

import adadelta_tx

jax.config.update("jax_enable_x64", True)  # as GPJax recommends


def objective(posterior, data):
    return -gpx.objectives.conjugate_mll(posterior, data)


x = jnp.linspace(-3, 3, 50)[:, None]
y = jnp.sin(2 * x) + 0.2 * jax.random.normal(jax.random.key(0), x.shape)
prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=gpx.kernels.RBF())
tx = adadelta_tx.adadelta(optax.cosine_decay_schedule(1.0, 1000))
_, history = gpx.fit(
    model=prior * gpx.likelihoods.Gaussian(),
    objective=objective,
    train_data=gpx.Dataset(X=x, y=y),
    optim=tx,
    num_iters=1000,
    verbose=False,
)
print(f"negative log marginal likelihood: {history[-1]:.6g}, of gpx.fit_scipy: 8.1843")
