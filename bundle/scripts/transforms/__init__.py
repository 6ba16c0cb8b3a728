"""Transforms of slices and volumes: normalisation, resampling, orientation, augmentation."""
