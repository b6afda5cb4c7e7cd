"""The experiment that compares settings over tasks, in small."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adadelta_tx
from benchmarks import _models, _tasks, choosing


@pytest.mark.parametrize("grad_eps", [None, 1e-12, 0.0])
def test_textbook_is_adadelta_for_the_papers_start(grad_eps):
    params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(3)}
    ours = adadelta_tx.scale_by_adadelta(0.9, 1e-5, grad_eps=grad_eps)
    plain = choosing.textbook(0.9, 1e-5, 1e-5 if grad_eps is None else grad_eps)
    states = ours.init(params), plain.init(params)
    for i in range(20):
        key = jax.random.key(i)
        grads = jax.tree.map(lambda x, k=key: jax.random.normal(k, x.shape), params)
        wanted, one = ours.update(grads, states[0], params)
        found, other = plain.update(grads, states[1])
        states = one, other
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), found, wanted
        )


def test_starts():
    g = np.array([3.0, -0.5], np.float32)
    first, later = {}, {}
    for i, start in enumerate(choosing.STARTS):
        tx = choosing.textbook(0.99, 1e-6, 0.0, i)
        first[start], state = tx.update(jnp.asarray(g), tx.init(jnp.zeros(2)))
        later[start], _ = tx.update(jnp.asarray(2 * g), state)
    np.testing.assert_allclose(first["paper"], 1e-3 * np.sign(g) * 10, rtol=1e-4)
    for start in ("bias", "first"):
        np.testing.assert_allclose(first[start], 1e-3 * np.sign(g), rtol=1e-4)
    d = 1e-6 + 0.01 * 1e-6
    means = {"bias": (0.99 + 4) / 1.99, "first": 0.99 + 0.04}
    for start, mean in means.items():
        wanted = 2 * np.sign(g) * np.sqrt(d / mean)
        np.testing.assert_allclose(later[start], wanted, rtol=1e-4)


def test_zeros_stay_zero():
    for i, _ in enumerate(choosing.STARTS):
        tx = choosing.textbook(0.95, 1e-6, 0.0, i)
        update, state = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
        assert not np.any(update)
        assert not np.any(state.averages.e_g)


def test_settings_have_different_labels():
    every = {*choosing.FIRST_TRIED, *itertools.chain(*choosing.OTHERS)}
    assert len({setting.label for setting in every}) == len(every)


def tiny(labels):
    """The task of telling a number, or its sign."""
    x = np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    wanted = (x[:, 0] > 0).astype(np.int32) if labels else x[:, :1]
    layers = _tasks.dense(2, 2 if labels else 1)
    data = _tasks.split((x, wanted), 50, 20, 20)
    return _tasks.Task(layers, _models.multilayer, *data, steps=200, batch=8)


@pytest.mark.slow
def test_choosing_benchmark(tmp_path, capsys, monkeypatch):
    few = {"sign": lambda: tiny(True), "number": lambda: tiny(False)}
    monkeypatch.setattr(choosing, "tasks", lambda folder: few)
    adam = next(s for s in choosing.FIRST_TRIED if s.optimizer == "Adam")
    monkeypatch.setattr(choosing, "FIRST_TRIED", [choosing.PAPER])
    choosing.main(["--quick", "--out", str(tmp_path)])
    path = tmp_path / "choosing_quick.json"
    before = json.loads(path.read_text())["results"]
    assert [row["task"] for row in before] == [*few]

    # A second start keeps what is there and adds what is not.
    monkeypatch.setattr(choosing, "FIRST_TRIED", [choosing.PAPER, adam])
    trained = []

    def recorded(self, setting, scale, seeds):
        trained.append(setting)
        return original(self, setting, scale, seeds)

    original = choosing.Runner.__call__
    monkeypatch.setattr(choosing.Runner, "__call__", recorded)
    choosing.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads(path.read_text())["results"]
    assert rows[:2] == before
    assert trained == [adam, adam]
    assert choosing.summary(rows) in capsys.readouterr().out
    assert all(row["spread"][0] >= 1 for row in before)
    assert all(0 <= row["not adapting"][0] <= 100 for row in before)
    assert all(len(row["validation"]) == 1 for row in rows)


def made(label, task, validation, test):
    return {
        "label": label, "task": task, "scale": 1.0, "validation": validation,
        "test": test, "error": [1.0] * len(test),
    }  # fmt: skip


def test_best_is_by_validation_and_lost_by_test():
    rows = [
        made("a", "x", [1.0, 3.0], [2.0, 4.0]),
        made("b", "x", [2.5, 2.5], [1.0, 1.0]),
        made("c", "x", [0.0, None], [0.0, 0.0]),
        made("a", "y", [5.0, 5.0], [8.0, 8.0]),
        made("b", "y", [4.0, 4.0], [4.0, 4.0]),
    ]
    results = choosing.Results(rows)
    assert results.used("a") == [1.0, 2.0]
    assert results.used("b") == [pytest.approx(1 / 3), 1.0]
    assert results.used("c") == []


TASKS = _tasks.tasks(None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if "MNIST" not in name])
def test_task_can_be_trained_and_has_the_size_that_is_told(name):
    task = TASKS[name]()
    params = task.initial(jax.random.key(0))
    rows = tuple(x[:4] for x in task.train)
    of = jax.jit(jax.value_and_grad(lambda p: _tasks.loss(task, p, rows)))
    value, grads = of(params)
    assert np.isfinite(value)
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    size = sum(x.size for x in jax.tree.leaves(params))
    assert f"({size:,})" in choosing.__doc__
