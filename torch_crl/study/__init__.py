"""Studies over many runs: their curves, the statistics of their seeds, and reports."""
