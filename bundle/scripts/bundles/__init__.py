"""Copies of the bundle that are changed: folds, releases, the label server's."""
