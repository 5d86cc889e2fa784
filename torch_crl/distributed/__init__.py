"""One run on several GPUs or machines: processes that torchrun starts, each with a rank."""
