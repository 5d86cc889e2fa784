"""Benchmarks: every measured number in the README or in an issue comes from a command in here."""
