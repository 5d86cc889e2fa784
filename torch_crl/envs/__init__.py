"""Environments in three parts: the task, the simulator that runs its physics, the vector env.

Reading order: `spec.py` for the sizes and thresholds of a task, `registry.py` for the list of
tasks, `task.py` for the functions that make up a task, one module of `tasks/`, then `simulators/`
and `vector_env.py`, which runs the episodes. The first two import neither torch nor MuJoCo.
"""
