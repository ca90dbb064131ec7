"""Training tasks, training runs, comparisons of optimizers, and benchmarks of their steps."""
