"""The tables of docs/measurements.md, from what `make examples` and donation.py left.

Prints them; with --page it writes them there, and keeps the results beside this file.
"""

import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
KEPT = ROOT / "examples/results"
PAGE = ROOT / "docs/measurements.md"
SOURCE = "https://github.com/adadelta-tx/adadelta_tx/blob/main"


def save(name, results):
    """Write the results, with versions and machine."""
    document = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def markdown(header, aligned, rows):
    """A table; aligned has a character a column, r for numbers."""
    rule = ["-:" if side == "r" else "-" for side in aligned]
    lines = (" | ".join(cells) for cells in [header, rule, *rows])
    return "".join(f"| {line} |\n" for line in lines)


def where(documents):
    """On what they were measured, a sentence."""
    (place,) = {
        "Python {python}, jax {jax}, optax {optax}, numpy {numpy}; {machine}.\n".format(
            **document
        )
        for document in documents.values()
    }
    return place


def examples(documents):
    """A row for each example."""
    rows = [
        [
            f"[{name}.py]({SOURCE}/examples/{name}.py)",
            ", ".join(f"{library} {v}" for library, v in row["versions"].items()),
            row["number"],
            f"{row['ours']:.6g}",
            f"{row['expected']:.6g}",
            f"{100 * row['tolerance']:g} %",
            f"{row['theirs']:.6g}",
            f"{row['cpu_seconds']:.0f}",
        ]
        for name, document in documents.items()
        for row in [document["results"]]
    ]
    header = ["example", "versions", "number", "here", "expected", "within"]
    header += ["optax or BrainPy", "CPU seconds"]
    return markdown(header, "lllrrrrr", rows) + "\n" + where(documents)


def donation(documents):
    """A row for each library, donated or not."""
    rows = [
        [
            row["library"],
            "donated" if row["donated"] else "copied",
            f"{row['median_ms']:.0f}",
            f"{row['mapped_mb']:.1f}",
        ]
        for row in documents["donation"]["results"]
    ]
    header = ["library", "state", "ms", "new memory, MB"]
    return markdown(header, "llrr", rows) + "\n" + where(documents)


TABLES = {"examples": examples, "donation": donation}
PATTERNS = {"examples": "examples/*.json", "donation": "donation.json"}


def main():
    for name, pattern in PATTERNS.items():
        paths = sorted(RESULTS.glob(pattern))
        if not paths:
            continue
        documents = {path.stem: json.loads(path.read_text()) for path in paths}
        table = TABLES[name](documents)
        print(table)
        if "--page" in sys.argv:
            KEPT.mkdir(exist_ok=True)
            (KEPT / f"{name}.json").write_text(json.dumps(documents, indent=2) + "\n")
            head, _, tail = re.split(
                f"(?<=<!-- {name} -->\n)(.*?)(?=<!-- end of {name} -->\n)",
                PAGE.read_text(),
                flags=re.DOTALL,
            )
            PAGE.write_text(f"{head}\n{table}\n{tail}")


if __name__ == "__main__":
    main()
