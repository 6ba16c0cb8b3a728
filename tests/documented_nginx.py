"""How do tests run the nginx configuration that the documentation gives?"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import BUNDLE
from orthanc import child, free_port, wait_until_ready

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
READER = ("reader", "a password")
WHY_NOT = None if NGINX and shutil.which("openssl") else "nginx isn't installed: apt-get install nginx openssl"


@contextmanager
def documented_nginx(folder: Path, backend: str) -> Iterator[tuple[str, str]]:
    """Run it before a server; yields its address and the certificate to trust. `READER` is who gets in."""
    port = free_port()
    certificate, key, passwords = folder / "labels.pem", folder / "labels.key", folder / "labels.htpasswd"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    word = subprocess.run(["openssl", "passwd", "-apr1", READER[1]], check=True, capture_output=True, text=True)
    passwords.write_text(f"{READER[0]}:{word.stdout.strip()}\n")
    text = (BUNDLE / "docs" / "monai_label.md").read_text(encoding="utf-8")
    [documented] = re.findall(r"^```nginx\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    here = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "labels.example.org": "127.0.0.1",
        "/etc/ssl/certs/labels.pem": str(certificate),
        "/etc/ssl/private/labels.key": str(key),
        "/etc/nginx/labels.htpasswd": str(passwords),
        "http://127.0.0.1:8000": backend,
    }
    for value, replaced in here.items():
        assert value in documented
        documented = documented.replace(value, replaced)
    places = "".join(
        f"{kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nuser root;\npid {folder / 'pid'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}{documented}\n}}\n"
    )
    passwords.chmod(0o644)
    log, url = folder / "log", f"https://127.0.0.1:{port}"
    command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error"), "-c", str(folder / "nginx.conf")]
    with child(command, log) as process:
        wait_until_ready(url, process, log, auth=READER, verify=str(certificate))
        yield url, str(certificate)
