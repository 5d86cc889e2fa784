"""Likelihood of an arrival, and the expected time until then, as one Triton kernel each way."""

MOST_STEPS = 8192
"""Steps of a row that a program can hold."""
