"""How Sphinx builds the pages, from files of this repository alone."""

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for benchmarks and tests, which are not installed

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
autodoc_typehints = "none"  # add_types writes them
napoleon_numpy_docstring = False

nitpicky = True
# What other packages document: a build needs no network, so their pages are not read.
# And the private modules, whose names no reader needs.
nitpick_ignore_regex = [
    (r"py:.*", r"(brainpy|chex|jax|optax|os)\..*|adadelta_tx\.(brainpy\.)?_.*"),
    (r"py:class", "AccumulatorDType|Any|ArrayLike|Callable|DTypeLike|Mapping"),
    (r"py:class", "PyTree|Sequence|StrPath"),
]

html_theme = "furo"
html_use_index = False  # the API is one page
html_title = "adadelta_tx"
html_theme_options = {
    "source_repository": "https://github.com/adadelta-tx/adadelta_tx/",
    "source_branch": "main",
    "source_directory": "docs/",
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def write_tables(folder: Path) -> None:
    """Writes ``<benchmark>.md`` for each committed result: its tables, and whence.

    And ``<benchmark>_<table>.md`` for each of benchmarks.choosing, which a page shows.
    """
    folder.mkdir(exist_ok=True)
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        document = json.loads(path.read_text())
        results = document.pop("results")
        command, note = document.pop("command"), document.pop("note", "")
        benchmark = importlib.import_module(command.split()[2])
        machine = f"{document.pop('machine')} ({document.pop('device')})"
        versions = ", ".join(f"{name} {number}" for name, number in document.items())
        origin = f"Measured by `{command}` on {machine} with {versions}. {note}"
        if path.stem == "choosing":
            for name, table in benchmark.tables(results).items():
                (folder / f"choosing_{name}.md").write_text(f"{table}\n")
        text = f"{benchmark.summary(results)}\n\n{origin.strip()}\n"
        (folder / path.name).with_suffix(".md").write_text(text)


def add_types(_app: Sphinx, _what: str, _name: str, object_: Any, *rest: Any) -> None:
    """Puts each argument's type into its docstring, as the code names it.

    Sphinx itself shows ``optax.ScalarOrSchedule`` as the dozen of types that it is.
    """
    function = object_.__init__ if isinstance(object_, type) else object_
    if not inspect.isfunction(function):
        return
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    arguments = [*definition.args.args, *definition.args.kwonlyargs]
    types = {x.arg: ast.unparse(x.annotation) for x in arguments if x.annotation}

    def with_type(match: re.Match[str]) -> str:
        name = match[1]
        return f"  {name} ({types[name]}): " if name in types else match[0]

    lines: list[str] = rest[-1]
    lines[:] = [re.sub(r"^  (\w+): ", with_type, line) for line in lines]


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
    app.connect("autodoc-process-docstring", add_types, priority=400)  # Napoleon: 500
    write_tables(Path(app.srcdir) / "_generated")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
