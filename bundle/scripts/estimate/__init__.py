"""What a training will cost, before it is run: parameters, operations, memory and time."""
