"""The committee's application for MONAI Label; `scripts/label_server.py` starts it."""
