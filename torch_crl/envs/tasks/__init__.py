"""What there is to do: a module for each family of robots, whose docstring describes it.

`layouts`, `models` and `sampling` are what the families share.
"""
