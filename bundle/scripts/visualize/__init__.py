"""Slices and curves as pictures."""
