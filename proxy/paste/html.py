"""What goes into a page, by the current prefix and names: the script, the vendor's snippet with its address changed, an image.

And the header that a Content-Security-Policy needs.
"""

from urllib.parse import quote

from proxy.collector.config import CollectorConfig
from proxy.collector.serving import script_of
from proxy.hit import DEFAULT_SITE

QUEUE = "<script>var _kmq = _kmq || [];</script>"
BESIDE = """\
<!-- script_beside_vendor: this goes before the vendor's snippet, and without async, since it must be there before the vendor's
     script empties the queue. -->
"""
NO_SCRIPT = '<!-- No script is served: set `script`, say script = "willow". -->\n'
INLINE = "# Inline lines of the HTML need a nonce besides; or put them into a file of the site's own that the page loads.\n"


def html(config: CollectorConfig, host: str = "") -> str:
    """For the pages of a site. `host`: the beacons' host, where it is not to be the page's own ("" in the addresses)."""
    base = (f"https://{host}" if host else "") + config.prefixes[0]
    parts = [_script(config, site, base) for site in _sites(config, host)] if config.script.names else [NO_SCRIPT]
    return "\n".join((*parts, _image(config, base)))


def csp(config: CollectorConfig, host: str = "") -> str:
    """The directives that a page's policy must allow."""
    source = f"https://{host}" if host else "'self'"
    script = f"script-src {source}; " if config.script.names else ""
    return f"Content-Security-Policy: {script}img-src {source}; connect-src {source}\n" + (INLINE if script else "")


def _sites(config: CollectorConfig, host: str) -> list[str]:
    """That of the host; without one every site that is configured, since their scripts may differ."""
    if host:
        below = ["*." + host.split(".", n)[n] for n in range(1, host.count(".") + 1)]
        return [next((config.hosts[name] for name in (host, *below) if name in config.hosts), DEFAULT_SITE)]
    own = list(dict.fromkeys(config.hosts.values()))
    return [DEFAULT_SITE, *own] if config.default_site else own


def _script(config: CollectorConfig, site: str, base: str) -> str:
    address = f"{base}/{config.script.names[0]}.js"
    integrity = script_of(config, site).integrity
    whose = "" if site == DEFAULT_SITE else f", site {site}"
    load = "" if config.script.beside_vendor else " async"
    tags = f"""\
<!-- The script{whose}; calls are pushed on _kmq, before or after it has loaded. Where a Content-Security-Policy forbids inline
     code, let a file of the site's own begin with the first line. -->
{QUEUE}
<script{load} src="{address}"></script>

<!-- The same, for pages that must check what they load (Subresource Integrity). The integrity changes with the settings and with
     each version: a page that still has the old one then runs no script, and sends nothing. -->
{QUEUE}
<script{load} src="{address}" integrity="{integrity}" crossorigin="anonymous"></script>
"""
    return BESIDE + tags if config.script.beside_vendor else tags + _vendors(address)


def _vendors(address: str) -> str:
    return f"""
<!-- Or, on a page that has the vendor's snippet: the same snippet without the key, and with this address in its last lines. -->
<script>var _kmq = _kmq || [];
function _kms(u){{
  setTimeout(function(){{
    var d = document, f = d.getElementsByTagName('script')[0], s = d.createElement('script');
    s.type = 'text/javascript'; s.async = true; s.src = u;
    f.parentNode.insertBefore(s, f);
  }}, 1);
}}
_kms('{address}');
</script>
"""


def _image(config: CollectorConfig, base: str) -> str:
    endpoint = (*config.endpoints.get("e", ()), "e")[0]
    name = (*config.parameters.get("_n", ()), "_n")[0]
    return f"""\
<!-- Or without any script: an image for an event. -->
<img src="{base}/{endpoint}?{quote(name, safe="")}=Viewed%20Product&amp;Product=Teapot" alt="" width="1" height="1">
"""
