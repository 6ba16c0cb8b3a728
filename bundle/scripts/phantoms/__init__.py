"""Synthetic abdominal CTs (phantoms), and labels that are corrupted in known ways."""
