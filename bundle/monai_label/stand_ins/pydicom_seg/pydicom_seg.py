"""A stand-in for pydicom-seg, which MONAI Label imports and which doesn't know pydicom 3.

The server has this folder on its search path. Nothing of it is used: `archive_store.py` reads and writes segmentations.
"""
