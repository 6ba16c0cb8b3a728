"""What is done to a slice's pixels: normalised, resampled, oriented, augmented."""
