"""What `scripts.algo` is made of."""
