"""Studies of many runs: learning curves, statistics over seeds, and reports."""
