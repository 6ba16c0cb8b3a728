"""Label audit: training cases and slices ranked by how much the committee distrusts their labels."""
