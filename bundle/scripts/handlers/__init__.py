"""What listens to a training or an evaluation."""
