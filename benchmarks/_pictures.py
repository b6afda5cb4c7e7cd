"""How the pictures look: readable on a phone, in grey and to the colour-blind.

So panels are on top of each other, not next to each other.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.4
"""Inches; at 240 dots an inch twice as wide as a page shows it, for sharp screens."""
OURS, OTHERS = "#0072B2", "0.75"
"""Colours of bars."""


class Style(NamedTuple):
    """What tells one series from another: never a colour alone.

    The names are those of Matplotlib's arguments, for ``**style._asdict()``.
    """

    color: str
    marker: str
    linestyle: Any


STYLES = (
    Style("#000000", "o", "-"),
    Style("#D55E00", "s", (0, (5, 2))),
    Style("#0072B2", "^", (0, (5, 1, 1, 1))),
    Style("#009E73", "D", (0, (1, 1))),
)
"""The first is ours, the second optax's. Colours: Okabe and Ito (2008)."""


def figure(height: float, title: str) -> Figure:
    """An empty one; the title says what it shows."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    made.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return made


def plain(panels: Iterable[Axes]) -> None:
    """Takes the lines away that show nothing."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)


def save(made: Figure, path: Path) -> None:
    """Writes a picture, and says where."""
    made.savefig(path, dpi=240)
    print(f"picture: {path}")
