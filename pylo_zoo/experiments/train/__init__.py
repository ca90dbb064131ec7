"""Training runs: the loop, its settings, optimizers by name, and learning-rate schedules."""
