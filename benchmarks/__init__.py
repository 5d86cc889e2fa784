"""Benchmarks: every figure the README or an issue names comes out of a command in here."""
