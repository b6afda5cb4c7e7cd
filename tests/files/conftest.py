import pytest

import adadelta_tx


@pytest.fixture(autouse=True)
def _fresh_names():
    adadelta_tx.clear_name_cache()
