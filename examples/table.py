"""The tables of docs/works_with.md, from what `make examples` and donation.py left.

Prints them; with --page it writes them there, and keeps the results beside this file.
"""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
KEPT = ROOT / "examples/results"
PAGE = ROOT / "docs/works_with.md"


def save(name, rows):
    """Write the rows, with versions and machine."""
    document = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    return document


def markdown(header, aligned, rows):
    """A table; aligned has a character a column, r for numbers."""
    rule = ["-:" if side == "r" else "-" for side in aligned]
    lines = (" | ".join(cells) for cells in [header, rule, *rows])
    return "".join(f"| {line} |\n" for line in lines)


def where(document):
    """On what it was measured, a sentence."""
    versions = (f"{name} {document[name]}" for name in ("jax", "optax", "numpy"))
    return f"Python {document['python']}, {', '.join(versions)}; {document['machine']}."


def examples(document):
    """A row for each example."""
    rows = [
        [
            f"[{name}.py](../examples/{name}.py)",
            ", ".join(f"{library} {v}" for library, v in row["versions"].items()),
            row["number"],
            f"{row['ours']:.6g}",
            f"{row['expected']:.6g}",
            f"{100 * row['tolerance']:g} %",
            f"{row['theirs']:.6g}",
            f"{row['cpu_seconds']:.0f}",
        ]
        for name, row in document["rows"].items()
    ]
    header = ["example", "versions", "number", "here", "expected", "within"]
    header += ["optax or BrainPy", "CPU seconds"]
    return markdown(header, "lllrrrrr", rows) + "\n" + where(document) + "\n"


def donation(document):
    """A row for each library and optimizer."""
    rows = [
        [
            row["library"],
            row["optimizer"],
            f"{row['copied']:.0f}",
            f"{row['donated']:.0f}",
            f"{row['copied'] / row['donated']:.1f}",
        ]
        for row in document["rows"]
    ]
    header = ["library", "optimizer", "not donated, ms", "donated, ms", "ratio"]
    return markdown(header, "llrrr", rows) + "\n" + where(document) + "\n"


TABLES = {"examples": examples, "donation": donation}


def main():
    for name, table in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            text = path.read_text()
            print(table(json.loads(text)))
            if "--page" in sys.argv:
                KEPT.mkdir(exist_ok=True)
                (KEPT / path.name).write_text(text)
                start, end = f"<!-- {name} -->\n\n", f"\n<!-- end of {name} -->\n"
                head, _, rest = PAGE.read_text().partition(start)
                _, _, tail = rest.partition(end)
                PAGE.write_text(head + start + table(json.loads(text)) + end + tail)


if __name__ == "__main__":
    main()
