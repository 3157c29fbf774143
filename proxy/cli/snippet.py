"""`snippet`: what is to be pasted into nginx and pages, for a configuration."""

from proxy.collector.config import CollectorConfig
from proxy.paste import html, nginx
from proxy.settings import Settings

PARTS = ("nginx", "html", "csp")
PORT = Settings.model_fields["port"].default
"""As beacon-http.conf has it."""


def text(config: CollectorConfig, part: str, host: str) -> str:
    """One of PARTS alone, ready to be redirected into a file. Raises CannotPaste."""
    if part == "nginx":
        return nginx.locations(config)
    return html.html(config, host) if part == "html" else html.csp(config, host)


def port_hint(settings: Settings) -> str:
    """What nginx's other file must be told; "" if it is as it is."""
    if settings.port == PORT:
        return ""
    if not settings.port:
        return "port is 0, another at each start; expected one that stays, for beacon-http.conf to name"
    return f"port is {settings.port}: beacon-http.conf must name it, `server 127.0.0.1:{settings.port}`, where it says {PORT}"


def everything(config: CollectorConfig, host: str) -> str:
    """All parts, with a word on where each goes. Raises CannotPaste."""
    return f"""\
== nginx: /etc/nginx/snippets/beacon-location.conf (beacon-proxy snippet nginx --output FILE), `include`d in your server block

{text(config, "nginx", host)}
== HTML, for every page

{text(config, "html", host)}
== If your pages have a Content-Security-Policy, it must allow at least

{text(config, "csp", host)}"""
