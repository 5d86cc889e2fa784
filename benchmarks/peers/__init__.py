"""Other implementations of the same update, to measure beside ours."""
