"""GPJax fits a Gaussian process's hyperparameters by its marginal likelihood."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import optax

import adadelta_tx

jax.config.update("jax_enable_x64", True)  # as GPJax recommends
EXPECTED = 8.1843  # where L-BFGS ends, gpx.fit_scipy


def objective(posterior, data):
    return -gpx.objectives.conjugate_mll(posterior, data)


def regression():
    x = jnp.linspace(-3, 3, 50)[:, None]
    y = jnp.sin(2 * x) + 0.2 * jax.random.normal(jax.random.key(0), x.shape)
    prior = gpx.gps.Prior(
        mean_function=gpx.mean_functions.Zero(), kernel=gpx.kernels.RBF()
    )
    return prior * gpx.likelihoods.Gaussian(), gpx.Dataset(X=x, y=y)


def main(adadelta=adadelta_tx.adadelta):
    tx = adadelta(optax.cosine_decay_schedule(1.0, 1000), rho=0.95)
    posterior, data = regression()
    _, history = gpx.fit(
        model=posterior,
        objective=objective,
        train_data=data,
        optim=tx,
        num_iters=1000,
        verbose=False,
    )
    return float(history[-1])


if __name__ == "__main__":
    print(f"negative log marginal likelihood: {main():.6g}, expected: {EXPECTED:.6g}")
