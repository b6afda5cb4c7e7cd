"""Adadelta as Zeiler (2012), Algorithm 1, writes it: the oracle of the tests."""

import numpy as np

# Gradients whose squares do not fit the accumulators count as this long.
LONGEST = {"float32": 2.0**63, "float64": 2.0**511}


def adadelta(gradients, rho, eps, accumulators="float64", grad_eps=None):
    """Yields (u, E[g²], E[Δx²]) after each gradient, in float64 or complex128."""
    longest = LONGEST[accumulators]
    grad_eps = eps if grad_eps is None else grad_eps
    s = d = 0.0
    for g in gradients:
        g = np.asarray(g)
        if np.iscomplexobj(g):
            g = g.astype(np.complex128)
            length = np.maximum(np.abs(g.real), np.abs(g.imag))
            g = g / np.maximum(1.0, length / (longest / 2))
        else:
            g = np.clip(g.astype(np.float64), -longest, longest)
        s = rho * s + (1 - rho) * np.abs(g) ** 2
        u = np.sqrt(d + eps) / np.sqrt(s + grad_eps) * g
        d = rho * d + (1 - rho) * np.abs(u) ** 2
        yield u, s, d
