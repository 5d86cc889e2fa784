"""From the envs to a batch: collecting steps, keeping them, drawing goals for them."""
