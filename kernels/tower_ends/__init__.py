"""First and last layers of towers, on Triton kernels."""
