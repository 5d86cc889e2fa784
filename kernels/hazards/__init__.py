"""Likelihood of an arrival, and the expected time until then, as one Triton kernel each way."""
