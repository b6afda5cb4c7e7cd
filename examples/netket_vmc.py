"""Variational Monte Carlo with NetKet: Ising's chain of 6 spins in a transverse field.

The restricted Boltzmann machine has complex parameters, so gradients are complex.
"""

import netket as nk

import adadelta_tx

hilbert = nk.hilbert.Spin(1 / 2, 6)
hamiltonian = nk.operator.Ising(hilbert, nk.graph.Chain(6), h=1.0)
model = nk.models.RBM(alpha=1, param_dtype=complex)
tx = adadelta_tx.adadelta(1.0)

energies = []
for seed in range(4):
    sampler = nk.sampler.ExactSampler(hilbert)
    state = nk.vqs.MCState(sampler, model, n_samples=512, seed=seed, sampler_seed=seed)
    driver = nk.VMC(hamiltonian, tx, variational_state=state)
    driver.run(300, show_progress=False)
    all_states = nk.vqs.FullSumState(hilbert, model, variables=state.variables)
    energies.append(all_states.expect(hamiltonian).mean.real)
lowest = nk.exact.lanczos_ed(hamiltonian)[0]
print(
    f"highest energy of 4 runs: {max(energies):.6g}, of the ground state: {lowest:.6g}"
)
