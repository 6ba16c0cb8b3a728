"""How well label maps agree with their references."""
