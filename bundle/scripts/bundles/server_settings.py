"""What the command label-server tells the server's process, and both say of accounts."""

from __future__ import annotations

HOSTS, TOKEN = "LABEL_SERVER_HOSTS", "LABEL_SERVER_TOKEN"  # environment variables: other users can't read them
NO_ACCOUNTS = "this application knows no accounts. Unset it, and put authentication in front: docs/monai_label.md."
