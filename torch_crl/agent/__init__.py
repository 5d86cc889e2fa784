"""What learns: networks, losses, one gradient update, and the policy that comes of it."""
