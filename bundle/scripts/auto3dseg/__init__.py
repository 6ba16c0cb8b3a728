"""The parts of `scripts.algo`: data, parameters, training, batch size and search for MONAI's Auto3DSeg."""
