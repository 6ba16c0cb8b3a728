"""The commands of `cyclic-committee`."""
