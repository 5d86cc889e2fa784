"""Training from the first step to the last: the loop, evaluations, saving and stopping."""
