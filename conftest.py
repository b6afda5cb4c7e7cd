import chex
from sybil import Sybil
from sybil.parsers.markdown import ClearNamespaceParser, PythonCodeBlockParser

# Before JAX starts: the sharding tests want more than one device.
chex.set_n_cpu_devices(8)

# How the pages are built, and the built ones.
collect_ignore_glob = ["docs/*.py", "docs/_*"]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), ClearNamespaceParser()],
    patterns=["docs/*.md"],
).pytest()
