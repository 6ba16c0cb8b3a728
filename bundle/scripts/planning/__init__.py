"""Data check, fingerprint, plan and preparation of a data set: nnU-Net's planner for 2D."""
