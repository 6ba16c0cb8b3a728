"""The committee's application for MONAI Label; `scripts/commands/label_server.py` starts it."""
