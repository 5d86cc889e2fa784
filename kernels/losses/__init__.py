"""The losses of actor, temperature and critic, with their metrics, as one Triton kernel each."""
