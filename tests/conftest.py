"""Shared by all tests."""

import sys
from pathlib import Path

# `own_task:make` names the example's task, as a user in that folder would.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
