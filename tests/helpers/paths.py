"""Where things lie in a checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OLD_RUN = ROOT / "tests" / "data" / "run_ced540e"
"""A run that an early version wrote: later ones read it and evaluate and compare it."""
