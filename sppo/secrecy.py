"""Credentials of this machine, taken out of messages."""

import os
import re

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|AUTH", re.IGNORECASE)
"""In the name of a variable."""
SECRET_LENGTH = 6
"""Shorter values of such variables are switches, not secrets."""
IN_URL = re.compile(r"://[^/@\s]+@")


def without_secrets(text: str) -> str:
    """A message as it may stand in a log: no credentials of URLs, no value of a variable that is named like a secret."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SECRET_LENGTH:
            text = text.replace(value, "***")
    return IN_URL.sub("://***@", text)
