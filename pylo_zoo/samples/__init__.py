"""Checkpoints that the project itself made, and the scripts that write them."""
