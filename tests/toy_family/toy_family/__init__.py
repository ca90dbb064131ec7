"""The toy family: an MLP of two inputs that mixes the gradient and its momentum."""
