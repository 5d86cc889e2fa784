"""What there is to do: a module for each family of robots, whose docstring describes it.

`ant_robot`, `panda`, `panda_control`, `layouts`, `models` and `sampling` are what they share.
"""
