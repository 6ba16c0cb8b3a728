"""What can be typed after `cyclic-committee`."""
