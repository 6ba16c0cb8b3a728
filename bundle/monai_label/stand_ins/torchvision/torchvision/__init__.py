"""A stand-in for torchvision where PyPI's doesn't fit the PyTorch that is installed, such as one for CPUs.

MONAI Label imports two functions of it for whole-slide images, which aren't served here.
"""
