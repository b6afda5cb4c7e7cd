import pytest

import adadelta_tx
from adadelta_tx import _files


@pytest.fixture(autouse=True)
def _fresh_names():
    adadelta_tx.clear_name_cache()


@pytest.fixture
def _at_rest(monkeypatch):
    """What a test has just written is read without a wait; test_faults does wait."""
    monkeypatch.setattr(_files, "_REST", 0)
