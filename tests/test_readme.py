"""README's tables: recipes that train, and results that were measured.

Its code blocks run too: conftest.py has pytest collect them.
"""

import inspect
import json
import re
from pathlib import Path

import brainpy as bp
import braintools
import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adadelta_tx
from benchmarks import (
    demo,
    faults,
    low_memory,
    scale,
    stateful,
    step,
    training,
    zeiler2012,
    zeiler2012_choices,
)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TABLE = README[README.index("## Recipes") : README.index("## Coming from another")]
RECIPES = dict(re.findall(r"^\| (.+?) \| `(.+)` \|$", TABLE, re.MULTILINE))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe):
    names = {"adadelta_tx": adadelta_tx, "jax": jax, "jnp": jnp, "optax": optax}
    tx = eval(RECIPES[recipe], names)  # our own README

    def loss(params):
        return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 2)

    params = start = {"w": jnp.full((2, 3), 2.0), "b": jnp.ones(3)}
    state = tx.init(params)

    @jax.jit
    def train(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(8):
        params, state = train(params, state)
    assert (loss(params) > loss(start)) == (recipe == "to maximise")
    frozen = bool(jnp.all(params["b"] == start["b"]))
    assert frozen == (recipe == "some parameters frozen")
    chex.assert_tree_all_finite((params, state))


def test_all_recipes_were_found():
    assert len(RECIPES) == TABLE.count("\n|") - 2


BENCHMARKS = [
    demo,
    faults,
    low_memory,
    scale,
    stateful,
    step,
    training,
    zeiler2012,
    zeiler2012_choices,
]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_results_are_the_committed_ones(benchmark):
    name = benchmark.__name__.rpartition(".")[2]
    document = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    command = document["command"].replace(" --data DIR", "")
    assert command == f"python -m benchmarks.{name} --out benchmarks/results"
    assert benchmark.summary(document["results"]) in README


def test_what_a_look_inside_costs():
    path = ROOT / "benchmarks/results/zeiler2012.json"
    results = json.loads(path.read_text())["results"]
    assert zeiler2012.look_cost(results) in README.replace("\n", " ")


def test_defaults_of_others():
    """Of those that are installed here, as README tells them."""
    start = README.index("| | here | optax | torch | Keras")
    header, _, *rows = README[start : README.index("\n\n", start)].splitlines()
    columns = [cell.strip() for cell in header.split("|")]
    functions = {
        "here": adadelta_tx.adadelta,
        "optax": optax.adadelta,
        "BrainPy": bp.optim.Adadelta.__init__,
        "braintools": braintools.optim.Adadelta.__init__,
    }
    checked = 0
    for row in rows:
        for column, cell in zip(columns, row.split("|"), strict=True):
            told = re.search(r"`(\w+)=(.+)`", cell)
            if told and column in functions:
                parameters = inspect.signature(functions[column]).parameters
                assert str(parameters[told[1]].default) == str(eval(told[2]))
                checked += 1
    assert checked == 12
