"""Training runs for a person to look at: one (:mod:`~pylo_zoo.train.loop`), or several side by side."""
