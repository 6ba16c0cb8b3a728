"""Data sets: from files on disk to slices in a mini-batch."""
