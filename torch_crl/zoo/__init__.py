"""Trained policies that come with the package: one run directory each, without checkpoints.

`torch_crl.runs.zoo` finds them; `python -m torch_crl.benchmarks.zoo` adds one.
"""
