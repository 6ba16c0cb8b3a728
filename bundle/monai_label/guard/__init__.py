"""What comes from outside, looked at before anything uses it: who asks, parameters, names and files."""
