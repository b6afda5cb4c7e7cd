"""Which variables of a file are an optimizer's: all of them, or an error."""

import re
from collections.abc import Collection, Iterable

from adadelta_tx._files import CheckpointError, Description


def match(
    file: Description,
    name: str,
    schedule: str,
    leaves: Collection[str],
    others: Collection[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Finds variables of ours in a file: their names there, by their names here.

    An optimizer's own variables are the ``leaves`` called ``name.key``, its schedule's
    those called ``schedule.key``. ``others`` have the same names in the file.
    """
    names, warnings = file.variables, []
    own, counters = (
        {_key(x): x for x in leaves if _of(x) == y} for y in (name, schedule)
    )
    owner = _owner(file, name, own)
    _check_complete(name, own, owner, names)
    places = {leaf: leaf for leaf in others}
    places |= {leaf: f"{owner}.{key}" for key, leaf in own.items()}
    for key, leaf in counters.items():
        its = [x for x in names if _key(x) == key and file.schedule in (None, _of(x))]
        if len(its) == 1:
            places[leaf] = its[0]
        elif key != "lr":  # whose value is among the numbers
            warnings.append(f"{leaf} stays; the file has {_some(its)}.")
    if missing := [place for place in places.values() if place not in names]:
        raise CheckpointError(f"it lacks these variables: {_some(missing)}.")
    owners = {_of(place) for place in places.values()}
    looks = {names[place] for place in places.values()}
    left = [x for x in names if _of(x) not in owners and names[x] not in looks]
    if others:  # numbers that were saved with variables are read in other ways
        left = [x for x in left if _key(x)]
    if left:
        how = "To load these too, write load_states(file, network.vars())."
        warnings.append(f"not loaded: {_some(left)}. {how}")
    return places, warnings


def _owner(file: Description, name: str, own: Collection[str]) -> str:
    """Under which name a file has an optimizer's own variables."""
    if not own:
        raise CheckpointError(
            f"{name} has no variables yet. Give it train_vars, or call "
            "register_train_vars, before it loads a file."
        )
    found = sorted({_of(x) for x in file.variables if _key(x) in own})
    owner = file.owner or (name if name in found else next(iter(found), name))
    if len(found) > 1 and owner != name:
        write = "Give the optimizer the name that its variables have there."
        if file.owner:
            write = f"It was saved by {file.owner}: load it by that one's load_states"
            write += "(file, variables), with the other's vars()."
        raise CheckpointError(f"it has variables of {_some(found)}. {write}")
    return owner


def _check_complete(
    name: str, own: Collection[str], owner: str, names: Collection[str]
) -> None:
    """Checks that a file has an optimizer's own variables, and no more accumulators."""
    theirs = {_key(x): x for x in names if _of(x) == owner}
    missing = [key for key in own if key not in theirs]
    kinds = ("_cache", "_delta", "_codes")
    more = [x for x in theirs if x not in own and x.partition("[")[0].endswith(kinds)]
    if len(missing) == len(own):
        more = [*names]
    if missing or more:
        kinds = ["uint8" if "codes_count" in x else "floats" for x in (own, theirs)]
        differ = " This optimizer has accumulators in {}, and the file has them in {}."
        differ = differ.format(*kinds) if kinds[0] != kinds[1] else ""
        if missing and _unnumbered(missing) <= _unnumbered(map(_key, more)):
            differ = (
                " If these are layers that BrainPy numbered, call "
                "bm.clear_name_cache() before you make the network."
            )
        raise CheckpointError(
            f"its variables are not those of {name}: missing {_some(missing)}; unknown "
            f"{_some(more)}.{differ}"
        )


def _unnumbered(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d", "", name) for name in names}


def _of(name: str) -> str:
    return name.partition(".")[0]


def _key(name: str) -> str:
    return name.partition(".")[2]


def _some(names: Collection[str]) -> str:
    shown = ", ".join(name[:100] for name in [*names][:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
