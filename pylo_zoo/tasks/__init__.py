"""Small real training tasks that need no network."""
