"""A run from its first step to its last: the loop, its evaluations, its saving and stopping."""
