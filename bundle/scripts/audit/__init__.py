"""Which labels the committee distrusts."""
