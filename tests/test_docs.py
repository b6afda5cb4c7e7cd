"""What README and the pages tell: recipes that train, figures that were measured.

README's code blocks run here, those of the pages by ``make test-docs``.
"""

import contextlib
import importlib
import inspect
import io
import json
import re
from collections import Counter
from pathlib import Path

import brainpy as bp
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adadelta_tx
from benchmarks import (
    accelerators,
    choosing,
    faq,
    low_memory,
    stateful,
    step,
    training,
    zeiler2012,
)
from tests.files import faults

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {"adadelta_tx": adadelta_tx, "jax": jax, "jnp": jnp, "optax": optax}


def path_of(name):
    return ROOT / ("README.md" if name == "README" else f"docs/{name}.md")


def page(name):
    """Its text, a space for each line break."""
    return re.sub(r"\s+", " ", path_of(name).read_text())


def name_of(benchmark):
    return benchmark.__name__.rpartition(".")[2]


def results(benchmark):
    """What is committed of it."""
    path = ROOT / f"benchmarks/results/{name_of(benchmark)}.json"
    return json.loads(path.read_text())


RECIPES = dict(
    re.findall(
        r"^\| (.+?) \| `(.+)` \|$",
        (ROOT / "docs/recipes.md").read_text(),
        re.MULTILINE,
    )
)


def train(tx, steps):
    """The loss before and after, and what was trained."""

    def loss(params):
        return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 2)

    params = start = {"w": jnp.full((2, 3), 2.0), "b": jnp.ones(3)}
    state = tx.init(params)

    @jax.jit
    def one(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = one(params, state)
    chex.assert_tree_all_finite((params, state))
    return loss(start), loss(params), start, params


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe):
    before, after, start, params = train(eval(RECIPES[recipe], NAMES), 8)  # our page
    assert (after > before) == (recipe == "to maximise")
    frozen = bool(jnp.all(params["b"] == start["b"]))
    assert frozen == (recipe == "some parameters frozen")


def test_all_recipes_were_found():
    text = (ROOT / "docs/recipes.md").read_text()
    assert len(RECIPES) == text.count("\n|") - 2 > 10


def test_no_line_begins_a_list_by_accident():
    """A line that begins with a number and a point is a list's in Markdown."""
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
        assert not re.findall(r"^\s*\d+[.)] .*", text, re.MULTILINE), path.name


SETTINGS = re.findall(
    r" \| `([^|]+)`[^|`]*\|\n", (ROOT / "docs/published_settings.md").read_text()
)


@pytest.mark.parametrize("setting", sorted(set(SETTINGS)))
def test_published_setting(setting):
    before, after, *_ = train(eval(setting, NAMES), 8)  # our page
    assert after < before


def test_all_published_settings_were_found():
    text = (ROOT / "docs/published_settings.md").read_text()
    last = re.findall(r"^\| \[.+\| (.+) \|$", text, re.MULTILINE)
    with_a_section = [cell for cell in last if cell.startswith("[")]
    assert len(last) == len(SETTINGS) + len(with_a_section) > 18


RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
OTHERWISE = {
    "faults": "tests.files.faults",
    "zeiler2012_choices": "benchmarks.zeiler2012 --choices",
}


def test_all_results_were_found():
    assert len(RESULTS) == 12


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_of_the_commands_that_are_named(path):
    document = json.loads(path.read_text())
    command = document["command"].replace(" --data DIR", "")
    module = OTHERWISE.get(path.stem, f"benchmarks.{path.stem}")
    assert command == f"python -m {module} --out benchmarks/results"
    benchmark = importlib.import_module(module.split()[0])
    assert benchmark.summary(document["results"]).startswith("| ")


def test_tables_of_questions_are_those_that_were_measured():
    text = (ROOT / "docs/faq.md").read_text()
    for table in faq.tables(results(faq)["results"]).values():
        assert table in text


def test_headlines():
    """README's figures; those of the results in short and of the start."""
    rows = {
        (row["implementation"], row["parameters"], row["leaves"]): row
        for row in results(step)["results"]["steps"]
        if not row["option"]
    }
    large = 3 * 10**7, 1
    ours, theirs = rows[step.OURS, *large], rows[step.OPTAX, *large]
    times = theirs["median_ms"] / ours["median_ms"]
    medians = {
        (row["allocator"], row["implementation"]): row["median_ms"]
        for row in results(step)["results"]["allocation"]
        if row["parameters"] == large[0] and row["donated"]
    }
    by_allocator = {
        name: medians[name, step.OPTAX] / medians[name, step.OURS]
        for name in step.ALLOCATORS
    }
    told = "allocation | {:.1f}, and {default:.1f} in a second measurement |"
    assert told.format(times, **by_allocator) in page("README")
    for name in ("huge pages", step.KEPT):
        (told,) = re.findall(rf"\| with \[{name}\][^|]+ \| (\S+) \|", page("README"))
        assert told == f"{by_allocator[name]:.1f}"
    temporary = [row["temporary_bytes"] / large[0] for row in (ours, theirs)]
    told = "{:.0f} bytes per parameter instead of {:.0f}".format(*temporary)
    assert told in page("README")

    both = step.by_option(results(step)["results"]["steps"], "30,000,000")
    fast, optaxs = both[step.OURS][1]["median_ms"], both[step.OPTAX]
    without, with_option = (row["median_ms"] / fast for row in optaxs)
    assert (
        f"{without:.1f} times as fast as optax without it, {with_option:.1f} times as "
        "fast as optax with it"
    ) in page("README")
    assert f"{times:.1f} times as fast as optax's, and {without:.1f} times with an" in (
        page("results")
    )
    assert (
        f"is {times:.1f} times as fast as `optax.adadelta`'s, or {without:.1f} times"
    ) in page("index")

    models = training.by_model(results(training)["results"]).values()
    ratios = [
        [
            theirs["median_ms"] / ours["median_ms"]
            for theirs, ours in zip(
                cells[training.OPTAX], cells[training.OURS], strict=True
            )
        ]
        for cells in models
    ]
    without, with_option = (
        f"{min(column):.1f} to {max(column):.1f} times"
        for column in zip(*ratios, strict=True)
    )
    assert f"{without} as fast, and {with_option} with XLA's option" in page("README")
    assert f"{without} as fast" in page("results")

    state = [
        round(row["state_bytes"] / row["parameters"])
        for row in results(low_memory)["results"]["costs"]
        if row["optimizer"] in ("float32", "bfloat16, rho 0.95", "uint8")
    ]
    told = "{} bytes, as in optax; optionally {} or {}".format(*state)
    assert told in page("README")

    many = step.OF_LEAVES, 500
    times = rows[step.OPTAX, *many]["median_ms"] / rows[step.OURS, *many]["median_ms"]
    assert f"in 500 arrays, a step is {times:.1f} times as fast" in page("README")

    eager = results(stateful)["results"]["eager"]
    ours, theirs = (
        eager[name]["median_ms"]
        for name in ("adadelta_tx.Adadelta", "brainpy.optim.Adadelta")
    )
    for name in ("README", "results"):
        assert f"{theirs / ours:.1f} times as fast as that of `brainpy" in page(name)


def test_what_results_tell_of_faults():
    found = results(faults)["results"].values()
    kills, damage = Counter(), Counter()
    for counts in found:
        kills.update(counts["kills"])
        for outcomes in counts["damage"].values():
            damage.update(outcomes)
    assert all(outcome.endswith(", kept") for outcome in kills)
    whole = "loaded as written", "loaded as its library reads it"
    assert damage.keys() == {"refused", *whole}
    told = (
        f"{kills.total():,} processes were killed, and none of {damage.total():,} dam"
    )
    assert told in page("results")


def test_what_the_option_gives():
    """docs/fast_on_a_cpu.md: by kind of state, and to optax."""
    rows = step.by_option(results(step)["results"]["steps"], "30,000,000")
    with_without = {
        name: both[1]["median_ms"] / both[0]["median_ms"] for name, both in rows.items()
    }
    small = [name for name in rows if name.startswith(f"{step.OURS}, ")]
    assert len(small) == 3
    assert with_without[step.OURS] < 0.8 < min(with_without[name] for name in small)
    assert with_without[step.OPTAX] < 0.9
    kernels = {name: [row["kernels"] for row in rows[name]] for name in rows}
    assert kernels[step.OURS] == [3, 1]
    assert all(kernels[name][1] == 2 for name in small)
    temporary = [row["temporary_bytes"] / row["parameters"] for row in rows["optax"]]
    assert np.round(temporary).tolist() == [8, 4]
    assert "needs 4 bytes of temporary memory per parameter instead of 8" in page(
        "fast_on_a_cpu"
    )


@pytest.mark.parametrize(
    ("chips", "told"),
    [
        ("TPU", "a step moves 28 bytes per parameter, optax's 38 to 48"),
        ("[AHB]", "a step moves 28 bytes per parameter, and so does optax's"),
    ],
)
def test_headlines_of_accelerators(chips, told):
    moved = {"float32": set(), "optax.adadelta": set()}
    for row in results(accelerators)["results"]["rows"]:
        alone = row["leaves"] and row["chips"] == 1  # no training step
        if alone and row["kind"] in moved and re.match(chips, row["chip"]):
            moved[row["kind"]].add(round(row["memory_bytes"] / row["parameters"]))
    ours, theirs = moved.values()
    assert ours == {28}
    assert (min(theirs), max(theirs)) == ((38, 48) if chips == "TPU" else (28, 28))
    assert told in page("README")


def test_what_a_look_inside_costs():
    cost = zeiler2012.look_cost(results(zeiler2012)["results"])
    assert cost in page("looking_inside")


def test_cells_far_from_the_paper():
    far = {
        (row["method"], row.get(zeiler2012.RATE))
        for row in results(zeiler2012)["results"]["cells"]
        if abs(np.mean(its := [x[-1] for x in row["errors"]]) - row["paper"])
        > 10 * np.std(its, ddof=1)
    }
    told = {"SGD": "0.01, 0.001 and 0.0001", "Momentum": "1, 0.001 and 0.0001"}
    told |= {"ADAGRAD": "1 and 0.0001"}
    assert far == {
        (name, float(rate))
        for name, rates in told.items()
        for rate in rates.replace(" and", ",").split(", ")
    }
    for name, rates in told.items():
        assert f"{name} at {rates}" in page("measurements")


def test_recommended_settings():
    """What docs/choosing.md says of its tables."""
    found = choosing.Results(results(choosing)["results"])
    lost = found.lost(choosing.CHOSEN.label)
    mean, worst = (round(100 * x - 100) for x in (np.mean(lost), max(lost)))
    told = f"lose {mean} % on average, and {worst} % on the worst task"
    assert told in page("choosing")
    adam = ["Adam, 0.003", "Adam, 0.01"]  # of which one has to know
    for setting in choosing.FIRST_TRIED:
        if setting != choosing.CHOSEN and setting.label not in adam:
            for scale in choosing.SCALES:
                ours, its = (
                    found.lost(s.label, scale) for s in (choosing.CHOSEN, setting)
                )
                assert np.mean(ours) < np.mean(its)
                assert max(ours) < max(its)
    usual = [found.lost(s.label) for s in choosing.FIRST_TRIED]
    assert max(usual, key=np.mean) == found.lost("Adam, 0.001")

    later = {
        setting: np.mean(found.lost(setting.label)[choosing.USED :])
        for setting in choosing.FIRST_TRIED
    }
    ours = later[choosing.CHOSEN]
    less = {1: "one", 2: "two", 3: "three", 4: "four"}[
        sum(its < ours for its in later.values())
    ]
    told = f"lose {round(100 * ours - 100)} %, and {less} of the other settings"
    assert told in page("choosing")

    rows = [found.row(choosing.PAPER.label, task) for task in found.tasks]
    half = sum(np.mean(row["not adapting"]) > 50 for row in rows)
    told = {6: "six", 7: "seven"}[half]
    assert f"or more do not adapt on {told} of the thirteen tasks" in page("choosing")

    def behind(task, setting, other):
        one, two = (found.row(s.label, task)["test"] for s in (setting, other))
        if None in two:
            return False
        return np.mean(one) > np.mean(two) + np.std(one, ddof=1)

    clipped = choosing.CHOSEN._replace(clip="norm")
    descent = choosing.CLIPPED_SGD._replace(clip="")
    wide = ["MNIST, MLP", "MNIST, wide"]
    pairs = {clipped: choosing.CLIPPED_SGD, choosing.CHOSEN: descent}
    for setting, other in pairs.items():
        assert {x for x in found.tasks if behind(x, setting, other)} <= {*wide}
    assert not any(behind(x, choosing.TWO, choosing.CLIPPED_SGD) for x in wide)


def test_quality_of_smaller_states():
    """docs/low_memory.md: against the seeds' deviation, or two standard errors."""
    found = results(low_memory)["results"]
    for runs in (found["mnist"], found["digits"]):
        errors = {(low_memory.name_of(run), run["kind"]): run["errors"] for run in runs}
        for (name, kind), values in errors.items():
            reference = errors[name, "float32"]
            worse = np.mean(values) - np.mean(reference)
            deviation, its = (np.std(x, ddof=1) for x in (reference, values))
            if name.startswith("ρ"):
                assert abs(worse) < deviation, (name, kind)
            elif (name, kind) != ("recommended, loss × 1000", "uint8"):
                assert worse <= 2 * np.hypot(deviation, its) / len(values) ** 0.5
    exact, coarse = (
        100 * np.mean(run["errors"])
        for run in found["mnist"]
        if run["scale"] == 1000 and run["kind"] in ("float32", "uint8")
    )
    assert f"is {coarse:.2f} % instead of {exact:.2f} %" in page("low_memory")


FUNCTIONS = {
    "`adadelta_tx.adadelta`": adadelta_tx.adadelta,
    "`adadelta_tx.Adadelta`": adadelta_tx.Adadelta.__init__,
    "`optax.adadelta` 0.2.8": optax.adadelta,
    "`brainpy.optim.Adadelta` 2.8.2 and 2.9": bp.optim.Adadelta.__init__,
}


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("switching", 8),
        ("brainpy", 14),
        ("README", 8),
    ],
)
def test_defaults(name, cells):
    """Of what is installed here."""
    pattern = r"^\|.* `adadelta_tx\.adadelta` \|.*\n(\|.*\n)+"
    table = re.search(pattern, path_of(name).read_text(), re.MULTILINE)
    header, _, *rows = table[0].splitlines()
    columns = [cell.strip() for cell in header.split("|")]
    checked = 0
    for row in rows:
        for column, cell in zip(columns, row.split("|"), strict=False):
            for argument, told in re.findall(r"`(\w+)=([^`]+)`", cell):
                if column in FUNCTIONS:
                    parameters = inspect.signature(FUNCTIONS[column]).parameters
                    assert str(parameters[argument].default) == str(eval(told))
                    checked += 1
    assert checked == cells


@pytest.mark.parametrize("name", ["README", "index"])
def test_what_is_on_the_screen(name):
    """Of each block of Python: the block of text after it, or before the next one."""
    text = path_of(name).read_text()
    blocks = re.findall(r"```(python|text)\n(.+?)```", text, re.DOTALL)
    pattern = re.compile(r"[-+\d.e]*\d")
    told = ""
    for (language, code), (following, shown) in zip(
        blocks, [*blocks[1:], ("", "")], strict=True
    ):
        if language == "python":
            told = shown if following == "text" else told
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, {})
            assert pattern.split(out.getvalue()) == pattern.split(told)
            printed, expected = (
                np.array(pattern.findall(x), float) for x in (out.getvalue(), told)
            )
            np.testing.assert_allclose(printed, expected, atol=0.03)
    assert told


def test_readme_links_to_pages_and_sections():
    links = re.findall(
        r"/latest/(\w+)\.html(?:#([^)]+))?", path_of("README").read_text()
    )
    assert len(links) > 15
    for name, anchor in links:
        headings = re.findall(r"^#+ (.+)$", path_of(name).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings}
        assert not anchor or anchor in slugs, (name, anchor)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


WORDS = r"\bbeside\b|\bpeers?\b|\bspreads?\b|\boverwrites its own\b|\bliving\b"
WORDS += r"|where there is none|\bof one's own\b"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_words(path):
    text = re.sub(r"```.+?```|`[^`]+`", "", path.read_text(), flags=re.S)
    assert not re.findall(WORDS, text)
