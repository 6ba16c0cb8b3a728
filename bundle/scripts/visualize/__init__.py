"""Pictures of slices, label maps and training curves."""
