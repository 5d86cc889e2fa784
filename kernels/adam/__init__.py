"""A step of Adam. Its definition is `torch.optim.Adam` with `fused=True`."""
