"""The machine a run computes on: files, checkpoints, threads, signals, terminals, CUDA graphs."""
