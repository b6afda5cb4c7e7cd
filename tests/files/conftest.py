import pytest

import adadelta_tx
from adadelta_tx import _files


@pytest.fixture(autouse=True)
def _fresh_names():
    adadelta_tx.clear_name_cache()


@pytest.fixture(autouse=True)
def _at_rest(monkeypatch):
    """A file is read at once after it was written; test_processes waits."""
    monkeypatch.setattr(_files, "_REST", 0)
