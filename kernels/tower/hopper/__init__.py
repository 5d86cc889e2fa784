"""The kernels of `tower` for Hopper, in Gluon."""
