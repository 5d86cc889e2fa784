"""Operating system and devices: files, checkpoints, threads, signals, terminals, CUDA graphs."""
