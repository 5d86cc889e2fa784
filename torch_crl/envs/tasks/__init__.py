"""What there is to do: a module for each family of robots, whose docstring describes it.

`ant_robot`, `layouts`, `models` and `sampling` are what they share.
"""
