"""Segmentation metrics: DSC and NSD, by organ and case."""
