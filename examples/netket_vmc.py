"""Variational Monte Carlo with NetKet: Ising's chain of 6 spins in a transverse field.

The restricted Boltzmann machine has complex parameters, so gradients are complex.
"""

import netket as nk

import adadelta_tx

EXPECTED = -7.7274  # the ground state's energy, nk.exact.lanczos_ed(H)


def energy(tx, seed):
    hilbert = nk.hilbert.Spin(1 / 2, 6)
    hamiltonian = nk.operator.Ising(hilbert, nk.graph.Chain(6), h=1.0)
    model = nk.models.RBM(alpha=1, param_dtype=complex)
    sampler = nk.sampler.ExactSampler(hilbert)
    state = nk.vqs.MCState(sampler, model, n_samples=512, seed=seed, sampler_seed=seed)
    driver = nk.VMC(hamiltonian, tx, variational_state=state)
    driver.run(300, show_progress=False)
    exact = nk.vqs.FullSumState(hilbert, model, variables=state.variables)
    return float(exact.expect(hamiltonian).mean.real)


def main(adadelta=adadelta_tx.adadelta):
    tx = adadelta(1.0, rho=0.95)
    return max(energy(tx, seed) for seed in range(4))


if __name__ == "__main__":
    print(f"highest energy of 4 runs: {main():.6g}, expected: {EXPECTED}")
