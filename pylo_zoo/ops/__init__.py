"""The eager implementation: the mathematics of docs/spec.md as pure functions of tensors.

All of it is defined in JAX layout. :mod:`pylo_zoo.ops.layout` maps the axes to those of a torch-layout parameter, so
nothing is transposed.
"""
