"""Fused kernels: the learned rules' step for many parameters at once, on one kind of device each."""
