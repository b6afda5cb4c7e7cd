"""Measurements, compared with other optimizers: ``python -m benchmarks.<module>``."""
