"""How Sphinx builds the pages, from files of this repository alone."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for benchmarks, which is not installed

import adadelta_tx  # noqa: E402

project = "adadelta_tx"
author = "The adadelta_tx authors"
copyright = author  # noqa: A001
version = release = adadelta_tx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False

nitpicky = True
# What other packages document, and what no page does: their pages are not asked for
# here, as a build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(brainpy|brainstate|chex|jax|numpy|np|optax|os|pathlib)\..*"),
]

html_theme = "furo"
html_title = "adadelta_tx"
html_theme_options = {
    "source_repository": "https://github.com/adadelta-tx/adadelta_tx/",
    "source_branch": "main",
    "source_directory": "docs/",
}
html_static_path = ["_static"]
html_css_files = ["mathml.css"]
html_math_renderer = "mathml"


def write_tables(folder: Path) -> None:
    """Writes ``<benchmark>.md`` for each committed result: its tables, and whence."""
    folder.mkdir(exist_ok=True)
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        document = json.loads(path.read_text())
        results = document.pop("results")
        if path.stem == "accelerators":
            results = results["rows"]
        benchmark = importlib.import_module(f"benchmarks.{path.stem}")
        command, note = document.pop("command"), document.pop("note", "")
        made_by = ", ".join(f"{key} {value}" for key, value in document.items())
        text = f"{benchmark.summary(results)}\n\n`{command}`: {made_by}. {note}\n"
        (folder / path.name).with_suffix(".md").write_text(text)


def add_mathml(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Maths that browsers show without a script."""
    block = isinstance(node, nodes.math_block)
    display = "block" if block else "inline"
    formula = converter.convert(node.astext(), display=display)
    writer.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (add_mathml, None), (add_mathml, None))
    write_tables(Path(app.srcdir) / "_generated")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
