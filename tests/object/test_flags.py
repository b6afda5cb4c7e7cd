"""The Adadelta object with JAX's flags, for all dtypes of its variables."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import brainpy as bp
import brainpy.math as bm
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from adadelta_tx import Adadelta, TrainVar
from tests import textbook

RHO, EPSILON = 0.9, 1e-2  # makes steps that float8 does not round away
RATES = (0.5, 0.25, 0.125)
SCHEDULE = optax.exponential_decay(0.5, 1, 0.5)  # the same, calculated
START = np.array([1.0, -2.0, 0.5, 3.0])
GRADS = np.array([[1.0, -0.5, 0.0, 4.0], [0.5, 0.25, 2.0, -8.0], [1.0, 1.0, 0.0, 0.5]])

NARROW = ("float8_e4m3fn", "float16", "bfloat16", "float32", "complex64")
WIDE = ("float64", "complex128")
ACCUMULATORS = (None, "uint8", "bfloat16", "float32")
ROUNDED = {"bfloat16": 1e-2, "uint8": 0.5}
"""How far an update may be off because its accumulators are rounded."""

Context = Callable[[], contextlib.AbstractContextManager[Any]]


class Flags(NamedTuple):
    """What is set while an optimizer is made and, if it differs, while it lives."""

    made: Context
    lives: Context | None = None
    x64: bool = False
    dtypes: tuple[str, ...] = NARROW
    accumulators: tuple[str | None, ...] = (None, "uint8")
    decays: tuple[float, ...] = (0.125,)


@contextlib.contextmanager
def strict_with_x64():
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        yield


FLAGS = {
    "none": Flags(contextlib.nullcontext, accumulators=ACCUMULATORS),
    "strict promotion": Flags(
        lambda: jax.numpy_dtype_promotion("strict"),
        accumulators=ACCUMULATORS,
        decays=(0.0, 0.125),
    ),
    "strict promotion, x64": Flags(
        strict_with_x64,
        x64=True,
        dtypes=("bfloat16", "float32", *WIDE),
        accumulators=(*ACCUMULATORS, "float64"),
        decays=(0.0, 0.125),
    ),
    "x64 until it is made": Flags(
        lambda: jax.enable_x64(True),
        lambda: jax.enable_x64(False),
        x64=True,
        dtypes=("bfloat16", "float32", *WIDE),
    ),
    "no transfers": Flags(
        lambda: jax.transfer_guard("disallow"), accumulators=ACCUMULATORS
    ),
    "no promotion of ranks": Flags(lambda: jax.numpy_rank_promotion("raise")),
    "no NaN": Flags(lambda: jax.debug_nans(True)),
    "no infinities": Flags(lambda: jax.debug_infs(True)),
    "no leaks": Flags(jax.checking_leaks),
    "no compilation": Flags(jax.disable_jit, accumulators=(None,)),
}


def arrays(values, dtypes):
    """Values in each dtype; the complex ones have imaginary parts too."""
    both = {"c": values + 1j * values[::-1]}
    types = {key: jnp.dtype(key) for key in dtypes}
    return {
        key: jax.device_put(both.get(dtype.kind, values).astype(dtype))
        for key, dtype in types.items()
    }


def fetched(variables):
    return {
        key: jax.device_get(variable.value).astype(np.complex128)
        for key, variable in variables.items()
    }


def trained(flags, kind, dtypes, accumulators=None, decay=0.0, lr=1.0):
    """An optimizer after three steps, each one compared with the textbook's."""
    with jax.enable_x64(flags.x64):
        gradients = [arrays(g, dtypes) for g in GRADS]
        train_vars = {key: kind(x) for key, x in arrays(START, dtypes).items()}
    updates = {
        key: textbook.adadelta([np.asarray(g[key]) for g in gradients], RHO, EPSILON)
        for key in dtypes
    }
    options = {"weight_decay": decay, "accumulator_dtype": accumulators}
    with flags.made():
        opt = Adadelta(train_vars, lr, EPSILON, RHO, **options)
    for i, (rate, grads) in enumerate(zip(RATES, gradients, strict=True)):
        before = fetched(train_vars)
        with (flags.lives or flags.made)():
            if callable(lr):
                assert float(opt.lr) == rate
            elif i == 1:
                opt.lr = rate
            else:
                opt.lr.set_value(rate)
            opt.update(grads)
        for key, got in fetched(train_vars).items():
            u, _, _ = next(updates[key])
            want = (1 - decay) * before[key] - rate * u
            dtype = train_vars[key].value.dtype
            is_64 = dtype in WIDE and accumulators in (None, "float64")
            exact = 1e-14 if is_64 else 1e-6
            off = (exact + ROUNDED.get(accumulators, 0.0)) * np.abs(rate * u)
            is_real = jnp.issubdtype(dtype, jnp.floating)
            nearest = (want.real if is_real else want).astype(dtype)
            # Rounded once.
            off += np.abs(nearest.astype(np.complex128) - want) + exact * np.abs(want)
            assert np.all(np.abs(got - want) <= off), (key, i, got, want)
    return opt, gradients[-1]


@pytest.mark.parametrize(
    ("name", "accumulators"),
    [(name, x) for name, flags in FLAGS.items() for x in flags.accumulators],
)
def test_updates(name, accumulators):
    flags = FLAGS[name]
    for decay in flags.decays:
        opt, _ = trained(flags, TrainVar, flags.dtypes, accumulators, decay)
        dtypes = {key: v.value.dtype for key, v in opt.vars_to_train.items()}
        with jax.enable_x64(flags.x64 and flags.lives is None):
            want = {key: jax.dtypes.canonicalize_dtype(key) for key in flags.dtypes}
        assert dtypes == want


@pytest.mark.parametrize("kind", [TrainVar, bm.TrainVar], ids=["ours", "brainpy"])
@pytest.mark.parametrize("name", FLAGS)
def test_everything_else(name, kind, tmp_path):
    flags, path = FLAGS[name], tmp_path / "run.npz"
    opt, grads = trained(flags, kind, ["float32"], lr=SCHEDULE)
    before = fetched(opt.vars())
    with (flags.lives or flags.made)():
        with pytest.raises(ValueError, match="lr must be finite and at least 0"):
            opt.lr = -0.5
        opt.save_states(path)
        opt.update(grads)
        opt.lr.step_epoch()
        opt.load_states(path)
        np.testing.assert_equal(fetched(opt.vars()), before)
        rates = opt.effective_learning_rate()["float32"]
        percentiles = opt.effective_learning_rate((0, 100))["float32"]
        assert "lr=Schedule(lr=" in repr(opt)
        opt.lr.lr = 0.5
        assert "lr=Schedule(lr=0.5)" in repr(opt)
    *_, (_, s, d) = textbook.adadelta(GRADS, RHO, EPSILON)
    want = np.sqrt((d + EPSILON) / (s + EPSILON))
    np.testing.assert_allclose(rates, want, rtol=1e-5)
    np.testing.assert_allclose(percentiles, [want.min(), want.max()], rtol=1e-5)


@pytest.mark.parametrize("name", ["none", "strict promotion", "no transfers"])
def test_dtypes_of_brainpys_variables(name):
    for accumulators in (None, "uint8"):
        trained(FLAGS[name], bm.TrainVar, NARROW, accumulators, decay=0.125)


@pytest.mark.parametrize("accumulators", [None, "uint8"])
def test_no_transfers_between_devices(accumulators):
    """But of the numbers of a step, by explicit ones; one set of devices may shard."""
    devices = jax.devices()[:2]
    second = SingleDeviceSharding(devices[1])
    mesh = Mesh(np.array(devices), ("axis",))
    split, copied = (NamedSharding(mesh, PartitionSpec(x)) for x in ("axis", None))
    want = START.copy()
    for u, _, _ in textbook.adadelta(GRADS, RHO, EPSILON):
        want -= 0.25 * u
    for places in ([second], [split], [split, copied]):
        start, *gradients = (
            {i: jax.device_put(np.float32(x), place) for i, place in enumerate(places)}
            for x in (START, *GRADS)
        )
        with jax.transfer_guard("disallow"):
            train_vars = {i: TrainVar(x) for i, x in start.items()}
            opt = Adadelta(
                train_vars, 0.25, EPSILON, RHO, accumulator_dtype=accumulators
            )
            for g in gradients:
                opt.update(g)
        for i, place in enumerate(places):
            x = train_vars[i].value
            assert x.sharding.is_equivalent_to(place, 1)
            rtol = 1e-6 if accumulators is None else 0.3
            np.testing.assert_allclose(x, want, rtol=rtol)


def test_a_rate_of_brainpys_schedulers():
    rate, w = bp.optim.Constant(0.5), TrainVar(jnp.ones(3))
    g = jnp.ones(3)
    with jax.transfer_guard("disallow"):
        opt = Adadelta({"w": w}, rate)
        opt.update({"w": g})
    ((u, _, _),) = textbook.adadelta([np.ones(3)], 0.95, 1e-6)
    np.testing.assert_allclose(w.value, 1 - 0.5 * u, rtol=1e-6)
