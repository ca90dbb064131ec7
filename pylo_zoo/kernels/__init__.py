"""Fused steps for kinds of devices: :mod:`pylo_zoo.kernels.base` says what each of them does."""
