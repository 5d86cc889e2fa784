"""Many runs: a grid of recipes over processes, here or on a cluster, resumable."""
