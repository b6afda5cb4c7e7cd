"""Which variable of a file is which of an optimizer's: no file, no optimizer."""

import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adadelta_tx import CheckpointError
from adadelta_tx._files import Description
from adadelta_tx._object.checkpoint import match

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("suite")
NAMES = st.text(string.ascii_letters, min_size=1, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(".".join)
KINDS = st.sampled_from([("_cache", "_delta"), ("_codes",)])


def description(names, owner=None, schedule=None):
    looks = {name: lambda name=name: name for name in names}
    numbers = None if owner is None else {}
    return Description(looks, lambda shape: [shape], owner, schedule, numbers)


@st.composite
def states(draw):
    """An optimizer's keys and its counters', names here and there, and what is more."""
    kinds = draw(KINDS)
    trained = draw(st.lists(PATHS, min_size=1, max_size=4, unique=True))
    own = [f"{key}{kind}" for kind in kinds for key in trained]
    own += ["codes_count"] * (kinds == ("_codes",))
    counters = draw(st.lists(st.sampled_from(["last_epoch", "last_call"]), unique=True))
    here = draw(st.tuples(NAMES, NAMES).filter(lambda x: x[0] != x[1]))
    there = draw(st.tuples(NAMES, NAMES).filter(lambda x: x[0] != x[1]))
    others = draw(st.lists(PATHS.map(lambda path: f"net.{path}"), unique=True))
    assume("net" not in (*here, *there))
    return own, counters, here, there, others


def named(names, own, counters):
    name, schedule = names
    yield from (f"{name}.{key}" for key in own)
    yield from (f"{schedule}.{key}" for key in counters)


@given(states(), st.booleans(), st.randoms())
def test_each_variable_has_its_own_place(state, ours, rng):
    own, counters, here, there, others = state
    names = [*named(there, own, counters), *others]
    rng.shuffle(names)
    file = description(names, *(there if ours else ()))
    leaves = [*named(here, own, counters), *others]
    places, warnings = match(file, *here, leaves, others)
    want = zip(leaves, [*named(there, own, counters), *others], strict=True)
    assert places == dict(want)
    assert not warnings


@given(states(), st.booleans())
def test_what_is_more_is_told_and_left(state, ours):
    own, counters, here, there, others = state
    file = description([*named(there, own, counters), *others], *there * ours)
    places, warnings = match(file, *here, list(named(here, own, counters)))
    assert set(places.values()) == set(named(there, own, counters))
    assert len(warnings) == bool(others)
    assert all(name in warnings[0] for name in others[:5])


@given(states(), st.booleans(), st.data())
def test_what_lacks_is_named(state, ours, data):
    own, counters, here, there, others = state
    lacks = data.draw(st.sampled_from(own))
    names = [x for x in named(there, own, counters) if x != f"{there[0]}.{lacks}"]
    file = description(names, *there * ours)
    with pytest.raises(CheckpointError, match=f"missing {lacks}"):
        match(file, *here, list(named(here, own, counters)))
    if others:
        file = description(named(there, own, counters), *there * ours)
        with pytest.raises(
            CheckpointError, match=f"lacks these variables: {others[0]}"
        ):
            match(file, *here, [*named(here, own, counters), *others], others)


@given(states(), st.booleans(), PATHS, st.sampled_from(["_cache", "_delta", "_codes"]))
def test_an_accumulator_more_is_anothers_state(state, ours, path, kind):
    own, counters, here, there, _ = state
    assume(f"{path}{kind}" not in own)
    names = [*named(there, own, counters), f"{there[0]}.{path}{kind}"]
    with pytest.raises(CheckpointError, match=f"unknown {path}{kind}"):
        match(description(names, *there * ours), *here, [*named(here, own, counters)])


@given(states(), NAMES, st.booleans())
def test_of_two_owners_the_one_of_the_same_name(state, second, ours):
    own, counters, here, there, _ = state
    assume(second not in (*here, *there))
    names = [*named(there, own, counters), *(f"{second}.{key}" for key in own)]
    file = description(names, *there * ours)
    leaves = list(named(here, own, counters))
    if here[0] == there[0]:
        match(file, *here, leaves)
    else:
        with pytest.raises(CheckpointError, match="it has variables of"):
            match(file, *here, leaves)
    same = (there[0], here[1])
    assume(there[0] != here[1])
    places, _ = match(file, *same, list(named(same, own, counters)))
    assert {f"{there[0]}.{key}" for key in own} <= set(places.values())


@given(states())
def test_counters_of_two_schedules_stay(state):
    own, _, here, there, _ = state
    names = [*named(there, own, ["last_epoch"]), "Other0.last_epoch"]
    assume("Other0" not in there)
    leaves = list(named(here, own, ["last_epoch"]))
    places, warnings = match(description(names), *here, leaves)
    assert f"{here[1]}.last_epoch" not in places
    assert "last_epoch stays; the file has" in warnings[0]
    places, _ = match(description(names, *there), *here, leaves)
    assert places[f"{here[1]}.last_epoch"] == f"{there[1]}.last_epoch"
