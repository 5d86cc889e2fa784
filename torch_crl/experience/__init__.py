"""From the envs to a training batch: collecting steps, storing them, drawing goals for them."""
