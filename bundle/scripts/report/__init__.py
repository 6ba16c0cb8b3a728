"""A page about cross-validations."""
