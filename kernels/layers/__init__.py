"""Towers as a matmul and one Triton kernel a layer, for widths that `tower` has no kernel for."""
