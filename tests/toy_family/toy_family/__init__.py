"""The toy family: an MLP with two inputs, the gradient and its momentum."""
