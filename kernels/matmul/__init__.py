"""Products of matrices within compiled code. Their definition is `torch.matmul`."""
