"""Environments in three parts: task (what), simulator (on what), vector env (episodes).

Read `spec.py` for the numbers of a task, `registry.py` for their list, `task.py` for what a task
does, one module of `tasks/`, then `simulators/` and `vector_env.py`. Nothing heavy is imported by
the first two.
"""
