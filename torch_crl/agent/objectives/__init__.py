"""Objectives: what the critic of an actor-critic update learns, and how it scores actions.

An objective is one file here and a line in `OBJECTIVES`; `objective.py` has the interface.
"""
