"""What every process needs: errors in one line, files whole or not at all, several processes."""
