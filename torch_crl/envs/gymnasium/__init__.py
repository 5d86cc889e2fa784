"""Both ways to Gymnasium: our tasks as its envs, and its goal envs as tasks to train on."""
