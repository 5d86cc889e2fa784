"""A GPU that computes nothing, under the real torch and Triton: rehearsals of what runs on GPUs."""
