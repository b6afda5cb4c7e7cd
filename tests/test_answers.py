"""The figures that the pages of questions and choices tell."""

import json

import numpy as np
import pytest

from benchmarks import faq
from tests import textbook


def test_faq_benchmark(tmp_path, capsys, monkeypatch):
    few = {name: faq.QUESTIONS[name] for name in ("first step", "sign")}
    monkeypatch.setattr(faq, "QUESTIONS", few)
    faq.main(["--out", str(tmp_path)])
    results = json.loads((tmp_path / "faq.json").read_text())["results"]
    assert list(results) == list(few)
    assert faq.summary(results) in capsys.readouterr().out
    assert results["sign"]["update for a gradient of 1"] == ["-0.0045", "+0.0032"]


def test_distance_is_that_of_the_textbook():
    told = faq.learning_rate_1()
    for i, numbers in enumerate(faq.SETTINGS.values()):
        if "learning_rate" in numbers:
            continue  # 76,208 steps
        rho, eps = numbers.get("rho", 0.95), numbers.get("eps", 1e-6)
        steps = [u for u, *_ in textbook.adadelta(np.ones(2000), rho, eps)]
        assert told["first step"][i] == f"{steps[0]:.2g}"
        arrived = int(np.argmax(np.cumsum(steps) >= 1)) + 1
        in_float32 = int(told["steps for a distance of 1"][i].replace(",", ""))
        assert in_float32 == pytest.approx(arrived, abs=1)


def test_epsilon_is_a_squared_learning_rate():
    small, large = (faq.distance(eps) for eps in (1e-4, 1e-2))
    # SGD's distance goes with the root of its learning rate.
    assert large / small == pytest.approx(100**0.25, rel=0.05)
