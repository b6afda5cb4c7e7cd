"""The experiment that compares settings over tasks, in small."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adadelta_tx
from benchmarks import settings


@pytest.mark.parametrize("grad_eps", [None, 1e-12, 0.0])
def test_textbook_is_adadelta_for_the_papers_start(grad_eps):
    params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(3)}
    ours = adadelta_tx.scale_by_adadelta(0.9, 1e-5, grad_eps=grad_eps)
    plain = settings.textbook(0.9, 1e-5, 1e-5 if grad_eps is None else grad_eps)
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
    for i, start in enumerate(settings.STARTS):
        tx = settings.textbook(0.99, 1e-6, 0.0, i)
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
    for i, _ in enumerate(settings.STARTS):
        tx = settings.textbook(0.95, 1e-6, 0.0, i)
        update, state = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
        assert not np.any(update)
        assert not np.any(state.averages.e_g)


def test_settings_have_different_labels():
    every = {*settings.FIRST_TRIED, *itertools.chain(*settings.OTHERS)}
    assert len({setting.label for setting in every}) == len(every)


def tiny(labels):
    """The task of telling a number, or its sign."""
    x = np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    wanted = (x[:, 0] > 0).astype(np.int32) if labels else x[:, :1]
    layers = settings.dense(2, 2 if labels else 1)
    data = settings.split((x, wanted), 50, 20, 20)
    return settings.Task(layers, settings.multilayer, *data, steps=200, batch=8)


def test_settings_benchmark(tmp_path, capsys, monkeypatch):
    few = {"sign": lambda: tiny(True), "number": lambda: tiny(False)}
    monkeypatch.setattr(settings, "tasks", lambda folder: few)
    adam = next(s for s in settings.FIRST_TRIED if s.optimizer == "Adam")
    monkeypatch.setattr(settings, "FIRST_TRIED", [settings.PAPER])
    settings.main(["--quick", "--out", str(tmp_path)])
    path = tmp_path / "settings_quick.json"
    before = json.loads(path.read_text())["results"]
    assert [row["task"] for row in before] == [*few]

    # A second start keeps what is there and adds what is not.
    monkeypatch.setattr(settings, "FIRST_TRIED", [settings.PAPER, adam])
    trained = []

    def recorded(self, setting, scale, seeds):
        trained.append(setting)
        return original(self, setting, scale, seeds)

    original = settings.Runner.__call__
    monkeypatch.setattr(settings.Runner, "__call__", recorded)
    settings.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads(path.read_text())["results"]
    assert rows[:2] == before
    assert trained == [adam, adam]
    assert settings.summary(rows) in capsys.readouterr().out

    lost = settings.ratios(rows)
    for task in few:
        both = [lost[s.label, 1.0, task] for s in (settings.PAPER, adam)]
        assert min(both) == 1
        assert max(both) > 1
    assert all(row["spread"][0] >= 1 for row in before)
    assert all(len(row["validation"]) == 1 for row in rows)
