"""Planning with a trained critic: ways over states of the replay, and pictures of its distances."""
