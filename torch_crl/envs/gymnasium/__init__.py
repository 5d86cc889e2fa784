"""Gymnasium in both directions: our tasks as its envs, its goal envs as tasks to train on."""
