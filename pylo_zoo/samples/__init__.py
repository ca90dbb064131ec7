"""Checkpoints that this project created, and the scripts that write them."""
