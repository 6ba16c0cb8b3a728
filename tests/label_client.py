"""MONAI Label's own Python client, driven from another environment: a call a line, [method, arguments], as JSON."""

from __future__ import annotations

import json
import sys

from monailabel.client.client import MONAILabelClient, MONAILabelClientException

if __name__ == "__main__":
    client = MONAILabelClient(sys.argv[1], tmpdir=sys.argv[2])
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = {"result": getattr(client, method)(*arguments)}
        except MONAILabelClientException as error:
            answer = {"status": error.status_code, "error": str(error.response)}
        print(json.dumps(answer), flush=True)
