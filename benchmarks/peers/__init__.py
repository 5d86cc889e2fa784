"""Other implementations of the same update, to run beside ours."""
