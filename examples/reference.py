"""Runs a script with the Adadelta of optax and BrainPy in place of ours.

python reference.py SCRIPT [ARGUMENT ...]
"""

import runpy
import sys

import optax

import adadelta_tx

# Theirs have one ε. Beside E[g²] it is as good as 0 when the gradients are that large.
LARGE = 1e6


def adadelta(learning_rate, rho=0.95, eps=1e-6, weight_decay=0.0, *, grad_eps=None):
    tx = optax.adadelta(learning_rate, rho, eps, weight_decay)
    return tx if grad_eps is None else optax.chain(optax.scale(LARGE), tx)


def stateful(train_vars=None, lr=1.0, epsilon=1e-6, *, grad_epsilon=None):
    import brainpy as bp
    import jax

    class Adadelta(bp.optim.Adadelta):
        def update(self, grads):
            if grad_epsilon is not None:
                grads = jax.tree.map(lambda g: LARGE * g, grads)
            super().update(grads)

    class Schedule(bp.optim.CallBasedScheduler):
        def __call__(self, i=None):
            return lr(self.last_call.value + 1)

    if callable(lr) and not isinstance(lr, bp.optim.Scheduler):  # optax's
        return Adadelta(Schedule(1.0), train_vars, epsilon=epsilon)
    return Adadelta(lr, train_vars, epsilon=epsilon)


adadelta_tx.adadelta, adadelta_tx.Adadelta = adadelta, stateful
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
