"""The method: score, select, update; the selection rules, the loss, several processes."""
