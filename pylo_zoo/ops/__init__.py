"""The mathematics of learned optimizers, stated once, as pure functions of tensors (SPEC).

Everything here is defined by the *JAX layout* of a parameter; :mod:`pylo_zoo.ops.layout` says which axes of a
torch-layout parameter that means, and nothing is ever transposed for it.
"""
