"""Backward modes: how often a member runs over a mini-batch, and which activations are kept of it."""
