"""Triton kernels without a GPU: their numbers in the interpreter, their code by cross-compiling."""
