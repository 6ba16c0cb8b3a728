"""Three U-Nets that choose each other's training samples: a MONAI bundle, installed as a package."""

__version__ = "0.1.0"
