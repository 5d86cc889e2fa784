"""The learning part: networks, losses, one gradient update, and the resulting policy."""
