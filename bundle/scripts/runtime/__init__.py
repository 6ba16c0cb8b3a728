"""What every process needs: one-line errors, atomic files, paths, parallel work, the start of a workflow."""
