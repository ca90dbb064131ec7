"""Other packages' names and arguments for the optimizers of this one: :mod:`pylo_zoo.compat.pylo`."""
