"""The tasks: one module for each family of robots, whose docstring describes its tasks.

`ant_robot`, `panda`, `panda_control`, `layouts`, `models` and `sampling` hold what they share.
"""
