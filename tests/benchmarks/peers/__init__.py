"""Registrations by other programs, each run in the environment of ``make bench-env``: see ``tests/benchmarks/README.md``."""
