"""The numbers: scale_by_adadelta against the textbook form in NumPy float64."""

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adadelta_tx
from tests import textbook

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("suite")

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
RHO = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.999]), st.floats(0.0, 0.999))
EPS = st.floats(-10.0, 1.0).map(lambda exponent: 10.0**exponent)
SHAPES = [(), (6, 5)]


@st.composite
def gradient_runs(draw, dtypes=tuple(DTYPES), most_steps=10):
    """A dtype and some steps of gradients from 1e-30 to the dtype's largest number."""
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    largest = float(np.log10(float(jnp.finfo(dtype).max)))
    center = draw(st.floats(-30.0, largest))
    width = draw(st.sampled_from([0.5, 4.0, 60.0]))
    size = (draw(st.integers(1, most_steps)), *draw(st.sampled_from(SHAPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def component():
        exponent = np.clip(center + width * rng.uniform(-1, 1, size), -30, largest)
        sign = rng.choice([-1.0, 0.0, 1.0], size, p=[0.45, 0.1, 0.45])
        with np.errstate(over="ignore"):
            magnitude = np.minimum(10.0**exponent, float(jnp.finfo(dtype).max))
        return sign * magnitude

    gradients = component()
    if np.issubdtype(dtype, np.complexfloating):
        gradients = gradients + 1j * component()
    return gradients.astype(dtype)


def run(tx, gradients):
    """Yields (updates, e_g, e_x) of the transformation after each gradient."""
    state = tx.init(jnp.zeros_like(gradients[0]))
    for gradient in gradients:
        with jax.disable_jit():  # to compile each example would take minutes
            updates, state = tx.update(jnp.asarray(gradient), state)
        yield updates, state.e_g, state.e_x


def assert_textbook(got, want, dtype, eps):
    """Compares one step: float32 within 1e-5, float64 within 1e-12."""
    real = np.dtype(dtype).type(0).real.dtype
    wide = real.itemsize == 8
    rtol, tiny = (1e-12, 1e-300) if wide else (1e-5, 1e-36)
    floor = tiny + eps * (1e-25 if wide else 1e-12)
    update_rtol, update_floor = rtol, floor
    if real.itemsize == 2:
        info = jnp.finfo(real)
        update_rtol = float(info.eps) / 2 + rtol
        update_floor += float(info.smallest_subnormal) / 2
    for name, (rtol_, floor_), a, b in zip(
        ("update", "E[g²]", "E[Δx²]"),
        ((update_rtol, update_floor), (rtol, floor), (rtol, floor)),
        got,
        want,
        strict=True,
    ):
        a = np.asarray(a)
        assert np.isfinite(a).all(), name
        a = a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol_, atol=floor_, err_msg=name)


@settings(max_examples=100)
@given(gradients=gradient_runs(), rho=RHO, eps=EPS)
@example(gradients=np.float32([[1e38], [1.0], [1e38], [0.0]]), rho=0.95, eps=1e-6)
@example(gradients=np.float16([[0.0], [6.5e4], [6e-8]]), rho=0.95, eps=1e-6)
@example(gradients=np.float32([[1.0], [1e-25], [0.0], [1.0]]), rho=0.0, eps=1e-6)
@example(gradients=np.float32([[3e18], [1e18], [1e16]]), rho=0.9, eps=1e-10)
@example(gradients=np.float32([[1.0], [2.0], [3e9]]), rho=1e-9, eps=1e-3)
@example(gradients=np.complex64([[3e38 + 1e38j], [1j], [0]]), rho=0.95, eps=1e-6)
@example(gradients=np.zeros((2, 2, 0, 3), np.float32), rho=0.95, eps=1e-6)
def test_equals_the_textbook(gradients, rho, eps):
    real = gradients.real.dtype if gradients.dtype.kind == "c" else gradients.dtype
    wide = real == np.float64
    with jax.enable_x64(wide):
        tx = adadelta_tx.scale_by_adadelta(rho, eps)
        want = textbook.adadelta(gradients, rho, eps, "float64" if wide else "float32")
        for got, expected in zip(run(tx, gradients), want, strict=True):
            assert got[0].dtype == gradients.dtype
            assert got[1].dtype == got[2].dtype == ("float64" if wide else "float32")
            assert_textbook(got, expected, gradients.dtype, eps)


@pytest.mark.parametrize("rho", [0.95, 0.999])
def test_a_long_run_equals_the_textbook(rho):
    """So long that the averages have arrived at their limits."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5000, 20)) * 10.0 ** rng.uniform(-6, 6, 20)
    gradients = gradients.astype(np.float32)
    tx = adadelta_tx.scale_by_adadelta(rho)

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, (updates, *state)

    _, found = jax.lax.scan(step, tx.init(jnp.zeros(20)), jnp.asarray(gradients))
    want = zip(*textbook.adadelta(gradients, rho, 1e-6), strict=True)
    for got, exact in zip(found, want, strict=True):
        np.testing.assert_allclose(got, np.stack(exact), rtol=1e-4, atol=1e-30)


@settings(max_examples=80)
@given(
    gradients=gradient_runs(["float16", "bfloat16", "float32"], most_steps=8),
    rho=RHO,
)
def test_bfloat16_accumulators_stay_finite_and_near(gradients, rho):
    tx = adadelta_tx.scale_by_adadelta(rho, 1e-3, accumulator_dtype="bfloat16")
    want = textbook.adadelta(gradients, rho, 1e-3, "float32")
    for got, expected in zip(run(tx, gradients), want, strict=True):
        assert got[1].dtype == got[2].dtype == "bfloat16"
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in got)
        # Each step rounds E[·] to 8 bits at least, and a root halves the error.
        a, b = np.asarray(got[0], np.float64), expected[0]
        np.testing.assert_allclose(a, b, rtol=0.04, atol=1e-6)


GRAD_EPS = st.one_of(
    st.none(), st.just(0.0), st.floats(-24.0, 1.0).map(lambda n: 10.0**n)
)


@settings(max_examples=100)
@given(gradients=gradient_runs(), rho=RHO, eps=EPS, grad_eps=GRAD_EPS)
@example(
    gradients=np.float32([[0.0], [1e-9], [0.0]] * 3), rho=0.0, eps=1e-6, grad_eps=0
)
@example(gradients=np.float32([[1.0]] + [[0.0]] * 49), rho=0.5, eps=1e-6, grad_eps=0.0)
@example(gradients=np.float32([[3e38], [1e-12]]), rho=0.95, eps=1e-6, grad_eps=1e-20)
@example(gradients=np.complex64([[3e38j], [1e-9]]), rho=0.95, eps=1e-6, grad_eps=0.0)
def test_two_epsilons_equal_the_textbook(gradients, rho, eps, grad_eps):
    real = gradients.real.dtype if gradients.dtype.kind == "c" else gradients.dtype
    wide = real == np.float64
    # Squares below the least normal number are 0 in float32 (1e-300 in float64).
    kept = np.abs(gradients) > (1e-140 if wide else 1e-16)
    gradients = np.where(kept, gradients, 0).astype(gradients.dtype)
    least = 5e-277 if wide else 8.2718e-25
    used = None if grad_eps is None else max(grad_eps, least)
    with jax.enable_x64(wide):
        tx = adadelta_tx.scale_by_adadelta(rho, eps, grad_eps=grad_eps)
        fits = "float64" if wide else "float32"
        want = textbook.adadelta(gradients, rho, eps, fits, used)
        for got, expected in zip(run(tx, gradients), want, strict=True):
            assert got[0].dtype == gradients.dtype
            assert_textbook(got, expected, gradients.dtype, eps)


@pytest.mark.parametrize("accumulators", ["float32", "bfloat16", "float64", "uint8"])
@pytest.mark.parametrize("grad_eps", [None, 0.0, 1e-30])
def test_any_gradient_gives_finite_numbers(grad_eps, accumulators):
    """Also where the state has fewer bits than the gradient, and after many zeros."""
    with jax.enable_x64(True):
        tx = adadelta_tx.scale_by_adadelta(
            eps=1e-6 if grad_eps is None else 1e-30,
            grad_eps=grad_eps,
            accumulator_dtype=accumulators,
        )
        sizes = 10.0 ** jnp.arange(-44, 39, 2)
        g = {x: sizes.astype(x) for x in ("float32", "float64", "complex128")}
        zero = jax.tree.map(jnp.zeros_like, g)
        step = jax.jit(
            lambda g, n, state: jax.lax.fori_loop(
                0, n, lambda _, x: tx.update(g, x[1]), (g, state)
            )
        )
        state = tx.init(g)
        for gradient, times in ((g, 1), (zero, 1), (g, 3), (zero, 2500), (g, 1)):
            updates, state = step(gradient, times, state)
            chex.assert_tree_all_finite((updates, state))


@pytest.mark.parametrize("rho", [0.0, 0.95])
@pytest.mark.parametrize("grad_eps", [0.0, 1e-20, 1e-18])
@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64"])
def test_derivatives_with_a_negligible_epsilon(dtype, grad_eps, rho):
    """Finite at zero and tiny gradients; those of finite differences at others."""
    with jax.enable_x64(dtype == "float64"):

        def last(g, rho=rho):
            tx = adadelta_tx.scale_by_adadelta(rho, grad_eps=grad_eps)
            *_, (u, _, _) = run(tx, [g, g])
            return jnp.sum(u).real

        at = jnp.asarray([0.0, 1e-25, 1e-15, 1e-11, 1e-3, 1.0], dtype)
        by_g = jax.jit(jax.grad(last))(at)
        chex.assert_tree_all_finite(by_g)
        g, h, least = 1e-3, 1e-7, 5e-277 if dtype == "float64" else 8.27e-25

        def moved(g):
            steps = textbook.adadelta(
                [[g]] * 2, rho, 1e-6, grad_eps=max(grad_eps, least)
            )
            return [u for u, _, _ in steps][-1][0]

        want = (moved(g + h) - moved(g - h)) / (2 * h)
        np.testing.assert_allclose(by_g[4].real, want, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "float64"])
def test_the_scale_of_the_loss_does_not_matter(dtype):
    """With a negligible ε_g, gradients times c give the same updates."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        gradients = rng.normal(size=(40, 1, 50)) * 10.0 ** rng.uniform(-2, 0, 50)
        scales = np.array([[1.0], [1e-6], [1e-3], [1e3], [1e6]])
        gradients = jnp.asarray(gradients).astype(dtype) * scales.astype(dtype)
        tx = adadelta_tx.scale_by_adadelta(grad_eps=0.0)
        _, updates = jax.lax.scan(
            lambda state, g: tx.update(g, state)[::-1], tx.init(gradients[0]), gradients
        )
        for u in updates:
            exact = dtype != "bfloat16"  # the product is rounded
            u = np.asarray(u).astype(np.complex128)
            rtol = 1e-4 if exact else 0.05
            np.testing.assert_allclose(u[1:], u[[0] * 4], rtol=rtol)


def test_with_one_epsilon_it_does():
    """What the property above would find."""
    gradients = np.full((5, 1), 1e-3, np.float32)
    tx = adadelta_tx.scale_by_adadelta()
    *_, (u, _, _) = run(tx, gradients)
    *_, (v, _, _) = run(tx, gradients * np.float32(1e-3))
    assert v[0] < 0.01 * u[0]


def test_large_parameter_moves_again_after_a_huge_gradient():
    tx = adadelta_tx.scale_by_adadelta()
    _, state = tx.update(jnp.finfo("float32").max, tx.init(jnp.zeros(())))
    update, (e_g, _) = jax.lax.fori_loop(
        0, 2500, lambda _, carry: tx.update(jnp.ones(()), carry[1]), (0.0, state)
    )
    assert e_g < 2.0
    assert update > 1e-3


@given(
    gradients=gradient_runs(["float32"], most_steps=8),
    k=st.integers(-10, 10),
    rho=RHO,
)
def test_units(gradients, k, rho):
    """In other units the same steps (section 3.2 of the paper).

    With one ε for E[g²] and E[Δx²], these are: the loss times c², lengths times
    c, ε times c². The gradient is then c times as large, and so is the update;
    RMS[Δx] / RMS[g] has no units left. Powers of two change no digit.
    """
    gradients = np.clip(gradients, -1e12, 1e12)
    gradients[np.abs(gradients) < 1e-12] = 0
    c, eps = 2.0**k, 1e-6
    plain = run(adadelta_tx.scale_by_adadelta(rho, eps), gradients)
    other = run(
        adadelta_tx.scale_by_adadelta(rho, eps * c**2), gradients * np.float32(c)
    )
    for (u, s, d), (u_c, s_c, d_c) in zip(plain, other, strict=True):
        np.testing.assert_array_equal(u * c, u_c)
        np.testing.assert_array_equal(s * c**2, s_c)
        np.testing.assert_array_equal(d * c**2, d_c)


@settings(max_examples=30)
@given(
    gradients=hnp.arrays(np.float32, (3, 12), elements=st.floats(-100, 100, width=32)),
    order=st.permutations(range(12)),
    cut=st.sampled_from([0, 5, 12]),
)
def test_leaves_do_not_matter(gradients, order, cut):
    """Permuted, or split into several leaves, the numbers are the same."""
    tx = adadelta_tx.scale_by_adadelta()
    order = list(order)

    def split(x):
        x = jnp.asarray(x[order])
        return {"a": [x[:cut], None], "b": (x[cut:].reshape(1, -1),)}

    def merge(tree):
        joined = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        return joined[np.argsort(order)]

    state = tx.init(split(np.zeros(12, np.float32)))
    for gradient, one_leaf in zip(gradients, run(tx, gradients), strict=True):
        with jax.disable_jit():
            updates, state = tx.update(split(gradient), state)
        many_leaves = map(merge, (updates, state.e_g, state.e_x))
        chex.assert_trees_all_equal(
            tuple(many_leaves), tuple(map(np.asarray, one_leaf))
        )


GRADIENTS = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)


def final(gradients, rho=0.95):
    tx = adadelta_tx.scale_by_adadelta(rho)
    *_, (updates, e_g, e_x) = run(tx, gradients)
    return updates, e_g, e_x


class TestTransformations(chex.TestCase):
    @chex.all_variants
    def test_ten_steps(self):
        *_, want = textbook.adadelta(GRADIENTS, 0.95, 1e-6)
        got = self.variant(final)(GRADIENTS)
        chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_vmap_over_leaves_and_rho():
    rhos = jnp.array([0.0, 0.9, 0.999])
    got = jax.jit(jax.vmap(final, in_axes=(None, 0)))(jnp.asarray(GRADIENTS), rhos)
    for i, rho in enumerate(np.asarray(rhos, np.float64)):
        *_, want = textbook.adadelta(GRADIENTS, rho, 1e-6)
        chex.assert_trees_all_close(tuple(x[i] for x in got), want, rtol=1e-5)


def test_scan():
    tx = adadelta_tx.scale_by_adadelta()

    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, updates

    state, updates = jax.lax.scan(step, tx.init(jnp.zeros(5)), jnp.asarray(GRADIENTS))
    want = list(textbook.adadelta(GRADIENTS, 0.95, 1e-6))
    chex.assert_trees_all_close(updates, np.stack([u for u, _, _ in want]), rtol=1e-5)
    chex.assert_trees_all_close(tuple(state), want[-1][1:], rtol=1e-5)


def quadratic_run(x, learning_rate, xp, step):
    """The parameters after 10 steps down Σ a x² / 2, one of them not moving."""
    a = xp.asarray([1.0, 4.0, 0.0])
    for _ in range(10):
        x = x - learning_rate * step(a * x)
    return xp.sum(x**2)


def test_grad_through_ten_steps():
    """Derivatives of a run, by its starting point and its learning rate."""
    start, learning_rate = np.array([1.0, -0.5, 0.0]), 2.0

    def reference(x, learning_rate):
        gradients: list[np.ndarray] = []

        def step(g):
            gradients.append(g)
            *_, (u, _, _) = textbook.adadelta(gradients, 0.95, 1e-6)
            return u

        return quadratic_run(x, learning_rate, np, step)

    def ours(x, learning_rate):
        tx = adadelta_tx.scale_by_adadelta()
        state = tx.init(x)

        def step(g):
            nonlocal state
            updates, state = tx.update(g, state)
            return updates

        return quadratic_run(x, learning_rate, jnp, step)

    h = 1e-6
    by_start = [
        (reference(start + e, learning_rate) - reference(start - e, learning_rate))
        / (2 * h)
        for e in h * np.eye(3)
    ]
    by_rate = reference(start, learning_rate + h) - reference(start, learning_rate - h)
    with jax.enable_x64(True):
        value, got = jax.value_and_grad(ours, argnums=(0, 1))(
            jnp.asarray(start), jnp.asarray(learning_rate)
        )
    np.testing.assert_allclose(value, reference(start, learning_rate), rtol=1e-12)
    np.testing.assert_allclose(got[0], by_start, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(got[1], by_rate / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_derivative_by_rho(rho):
    gradients, h = [np.float64(g) for g in (1.0, 0.3, -2.0)], 1e-6

    def last(rho):
        *_, (u, _, _) = textbook.adadelta(gradients, rho, 1e-2)
        return u

    with jax.enable_x64(True):

        def ours(rho):
            *_, (u, _, _) = run(adadelta_tx.scale_by_adadelta(rho, 1e-2), gradients)
            return u

        got = jax.grad(ours)(rho)
    want = (last(rho + h) - last(rho - h)) / (2 * h)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    "value", [np.inf, -np.inf, complex(np.inf), complex(1, np.inf)]
)
def test_infinite_gradient_counts_as_the_largest(value):
    largest = np.nan_to_num(value, posinf=3e38, neginf=-3e38)
    dtype = np.complex64 if isinstance(value, complex) else np.float32
    *_, got = run(adadelta_tx.scale_by_adadelta(), np.asarray([value], dtype))
    *_, want = textbook.adadelta([largest], 0.95, 1e-6, "float32")
    assert_textbook(got, want, dtype, 1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.95])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_derivative_at_zero_gradients(rho, dtype):
    """Of two steps by the gradient, and by ρ: finite, and that of u = g at first."""

    def last_update(g, rho):
        *_, (updates, _, _) = run(adadelta_tx.scale_by_adadelta(rho), [g, g])
        return jnp.sum(updates).real

    by_both = jax.jit(jax.grad(last_update, argnums=(0, 1)))
    by_g, by_rho = by_both(jnp.zeros(2, dtype), rho)
    np.testing.assert_allclose(by_g, np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(by_rho, 0.0, atol=1e-30)


def test_nan_stays_in_its_element():
    *_, (updates, e_g, e_x) = run(
        adadelta_tx.scale_by_adadelta(), np.float32([[1, 1, 1], [1, np.nan, np.inf]])
    )
    for x in (updates, e_g, e_x):
        np.testing.assert_array_equal(np.isnan(x), [False, True, False])
        assert np.isfinite(x[2])


def test_same_numbers_as_optax():
    ours = adadelta_tx.adadelta(0.5, 0.9, 1e-6, 1e-2)
    theirs = optax.adadelta(0.5, 0.9, 1e-6, 1e-2)
    params = {"w": jnp.asarray(GRADIENTS[0]), "b": jnp.float32(2.0)}
    states = [ours.init(params), theirs.init(params)]
    many = [params, params]
    for gradient in GRADIENTS:
        gradients = {"w": jnp.asarray(gradient), "b": jnp.sum(gradient)}
        for i, tx in enumerate((ours, theirs)):
            updates, states[i] = tx.update(gradients, states[i], many[i])
            many[i] = optax.apply_updates(many[i], updates)
    chex.assert_trees_all_close(*many, rtol=1e-5)
    chex.assert_trees_all_close(*states, rtol=1e-5)
