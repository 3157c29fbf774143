"""Names that filter lists are known to block on a site's own host: refused, with the reason.

Only what real lists matched when it was measured, on addresses as this proxy serves them, stands here; a test holds each entry
against the lists. What else a list may match is for `beacon-proxy check-path` to find.
"""

import re

_SEGMENTS = frozenset(
    "adverts adbanners bannerads banner-ads webads webcounter hitcounter piwik opentag onetag "
    "event-tracking eventtracking partner-analytics frontend-metrics rum-collector stats-collector accesstracking".split()
)
_SCRIPT_SEGMENTS = frozenset("matomo snowplow prebid adserve".split())
_BANNER = re.compile(r"468x60|728x90|480x60")
_ROOT = re.compile(r"/(ads?/|adv/|hit)")

_ENDPOINTS = frozenset(
    "trackpageview track_pageview track_page_view trackvisit track_visit trackpixel track_pixel trackstats pagestat pagetag "
    "logevent event-log tracking_pixel pixel_tracking email-pixel clicktrack impressions stats-collect record-stats recordhit "
    "pingback omniture comscore csi_204 gen_204".split()
)
_ROOT_ENDPOINTS = re.compile(r"count|counter|clk|hit.*")

_SCRIPTS = frozenset(
    "beacon kissmetrics piwik matomo umami plausible snowplow segmentio newrelic rrweb prebid gtm gtag gpt ga1 cnt fbpixel "
    "fingerprint pageview pagetracker trackjs trackit trackevent track-event trackpageview web-analytics googleanalytics "
    "event-tracking eventtracking eventtracker click-tracking pixel-tracking stats-tracking perfmetrics webstats statcounter "
    "hitcounter hitcount adserver admanager events-collector".split()
)
_ROOT_SCRIPTS = frozenset({"b"})


def why_prefix(path: str, script: bool = False) -> str:
    """Why what is below `/path/`, or with `script` a script there, is blocked; "" if nothing is known to block it. `path` without
    the outer slashes."""
    path = path.lower()
    for segment in path.split("/"):
        if segment in _SEGMENTS:
            return f"filter lists block what is below /{segment}/"
        if script and segment in _SCRIPT_SEGMENTS:
            return f"filter lists block scripts below /{segment}/"
        if _BANNER.search(segment):
            return f"filter lists block the sizes of banners, such as {_BANNER.search(segment)[0]}"  # type: ignore[index]
    if found := _ROOT.match(f"/{path}/"):
        return f"filter lists block {found[0]} at the beginning of a path"
    return ""


def why_endpoint(name: str, root: bool = False) -> str:
    """Why `NAME?…` is blocked under any prefix, or with `root` under none; "" if nothing is known to block it."""
    name = name.lower()
    if name.endswith(".gif"):
        return "filter lists block GIFs with a short or telling name and a query (/e.gif?, /pixel.gif?)"
    if name in _ENDPOINTS or name.endswith("_beacon"):
        return f"filter lists block /{name}?"
    return f"filter lists block /{name}? at the root of a host" if root and _ROOT_ENDPOINTS.fullmatch(name) else ""


def why_script(name: str, root: bool = False) -> str:
    """Why `NAME.js` is blocked under any prefix, or with `root` under none; "" if nothing is known to block it."""
    name = name.lower()
    if name in _SCRIPTS:
        return f"filter lists block /{name}.js"
    return f"filter lists block /{name}.js at the root of a host" if root and name in _ROOT_SCRIPTS else ""
