"""The tower's passes with weights from L2 straight into the registers of the matrix unit."""
