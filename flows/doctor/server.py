"""The Prefect server that flows report to: whether it answers strangers, which pages may ask it, from where it is reached."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
import psutil  # type: ignore[import-untyped]

from flows.doctor.finding import Finding, half_open, ok, wrong

SUBJECT = "server"
ANSWER_S = 3.0
STRANGER = "https://stranger.invalid"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def look() -> Sequence[Finding]:
    """The configured server, by environment or profile."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    if api.url is None:
        return [ok(SUBJECT, "none is configured: `sppo run` starts one for itself, on loopback and behind a password")]
    parts = urlsplit(api.url)
    if parts.username or parts.password:
        move = "take them out, and set PREFECT_API_AUTH_STRING"
        return [wrong(SUBJECT, "PREFECT_API_URL holds credentials, which logs repeat", move)]
    secret = api.auth_string.get_secret_value() if api.auth_string else None
    try:
        return [*_door(api.url, secret), *_reach(api.url)]
    except httpx.HTTPError as problem:
        cause = " ".join(str(problem).split()) or type(problem).__name__
        return [wrong(SUBJECT, f"{api.url} does not answer: {cause}", "start it (`sppo serve`), or mend PREFECT_API_URL")]


def _door(url: str, secret: str | None) -> list[Finding]:
    """Who is answered, and which pages may read the answer."""
    ask = f"{url}/flows/count"
    with httpx.Client(timeout=ANSWER_S, headers={"Origin": STRANGER}) as client:
        stranger = client.post(ask, json={})
        credentials = tuple(secret.split(":", 1)) if secret and ":" in secret else None
        own = client.post(ask, json={}, auth=credentials) if credentials and len(credentials) == 2 else stranger
    any_page = own.headers.get("access-control-allow-origin") in ("*", STRANGER)
    found = []
    if stranger.is_success:
        move = "set PREFECT_SERVER_API_AUTH_STRING where it runs and PREFECT_API_AUTH_STRING here, or use `sppo serve`"
        pages = ", any page in a browser here included" if any_page else ""
        found.append(wrong(SUBJECT, f"{url} answers everyone without a password{pages}", move))
    elif not own.is_success:
        move = "set PREFECT_API_AUTH_STRING to what the server was started with"
        found.append(wrong(SUBJECT, f"{url} answers {own.status_code} to this machine's password", move))
    else:
        found.append(ok(SUBJECT, f"{url} asks for a password, and takes ours"))
    if any_page:
        move = "set PREFECT_SERVER_CORS_ALLOWED_ORIGINS to the UI's address"
        found.append(half_open(SUBJECT, "pages of any site may read what it answers (CORS *)", move))
    return found


def _reach(url: str) -> list[Finding]:
    """From where it is reached, and whether in the clear."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        if parts.scheme == "https":
            return []
        return [half_open(SUBJECT, f"the password goes to {parts.hostname} in the clear", "put TLS in front, and use https://")]
    port = parts.port or 80
    try:
        sockets = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS tells only root
        return []
    heard = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN and each.laddr.port == port}
    beyond = sorted(heard - {"127.0.0.1", "::1"})
    if not beyond:
        return [ok(SUBJECT, f"listens on loopback alone, port {port}")]
    move = "start it with --host 127.0.0.1, or put TLS and a firewall in front"
    return [half_open(SUBJECT, f"listens beyond loopback, on {', '.join(beyond)} port {port}", move)]
