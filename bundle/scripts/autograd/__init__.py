"""How often a member runs over a mini-batch, and what is kept of it."""
