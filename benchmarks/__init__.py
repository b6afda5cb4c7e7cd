"""Measurements beside other optimizers: ``python -m benchmarks.<module>``."""
