"""The method: what happens in one iteration, and which samples each member learns from."""
