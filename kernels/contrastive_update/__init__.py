"""All gradients of contrastive RL's losses together, and the losses themselves."""
