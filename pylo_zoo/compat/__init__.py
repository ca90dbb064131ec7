"""Other packages' names and arguments for this package's optimizers: :mod:`pylo_zoo.compat.pylo`."""
