"""What a data set is like, whether it is sound, and what it wants: nnU-Net's planner."""
