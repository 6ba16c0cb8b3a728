"""Inference: from a volume and weights to a label map."""
