"""The demo's pretend shop: a page with plain <img> beacons that needs no script, and one with the browser script."""

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

SCRIPT = "teapot"
HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>The Teapot Shop</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; color: #222 }
 button { font: inherit; padding: .5rem 1rem; margin: .25rem .25rem .25rem 0; border: 1px solid #999; border-radius: 6px }
 code { background: #eee; padding: 0 .3em } .note { color: #666 }
</style>
<h1>The Teapot Shop</h1>
"""
PAGE = (
    HEAD
    + """
<p>A pretend shop. This page sent two beacons with plain <code>&lt;img&gt;</code> tags when it loaded; look at the terminal.
Neither holds an API key.</p>
<img src="/e?_n=Viewed%20Product&amp;_p=visitor%40example.com&amp;Product=Teapot&amp;Price=24.50" alt="" width="1" height="1">
<img src="/s?_p=visitor%40example.com&amp;Plan=Guest" alt="" width="1" height="1">
<p>
 <button id="cart">Add to cart</button>
 <button id="buy">Buy now</button>
 <button id="login">Sign in (alias)</button>
 <button id="leave">Leave (sendBeacon)</button>
</p>
<p class="note" id="said"></p>
<script>
 const person = "visitor@example.com", said = document.getElementById("said");
 const pair = ([name, value]) => encodeURIComponent(name) + "=" + encodeURIComponent(value);
 const query = o => Object.entries(o).map(pair).join("&");
 function pixel(kind, o) {
  new Image().src = "/" + kind + "?" + query(o);
  said.textContent = "Sent /" + kind + " " + JSON.stringify(o);
 }
 const on = (id, call) => document.getElementById(id).addEventListener("click", call);
 on("cart", () => pixel("e", { _n: "Added To Cart", _p: person, Product: "Teapot" }));
 on("buy", () => pixel("e", { _n: "Purchased", _p: person, Product: "Teapot", Price: "24.50" }));
 on("login", () => pixel("a", { _p: "anonymous-7", _n: person }));
 on("leave", () => { navigator.sendBeacon("/e", query({ _n: "Left Page", _p: person }));
  said.textContent = "Sent by sendBeacon"; });
</script>
<p class="note"><a href="/script">The same shop with the browser script</a>, for pages that call <code>_kmq</code>.</p>
</html>
"""
)
WITH_SCRIPT = (
    HEAD
    + f"""
<p>This page loads <code>/{SCRIPT}.js</code>, 3 kB. It makes an anonymous visitor, counts the visit, and
sends what comes together in one request.</p>
<script>var _kmq = _kmq || [];
 _kmq.push(["record", "Viewed Product", {{ Product: "Teapot", Price: 24.5 }}]);
 _kmq.push(["trackClick", "wish", "Added To Wish List", {{ Product: "Teapot" }}]);
 _kmq.push(["trackClick", "away", "Left For The Other Page"]);
</script>
<script async src="/{SCRIPT}.js"></script>
<p>
 <button id="wish">Add to wish list</button>
 <button onclick="_kmq.push(['identify', 'visitor@example.com'])">Sign in (identify)</button>
 <button onclick="_kmq.push(['clearIdentity'])">Sign out</button>
</p>
<p class="note"><a id="away" href="/">Back to the page without a script</a>: the click is recorded, though the page goes away.
Stop the demo, click, start it again: what was clicked meanwhile arrives.</p>
</html>
"""
)


async def _page(request: Request) -> HTMLResponse:
    return HTMLResponse(WITH_SCRIPT if request.url.path == "/script" else PAGE)


ROUTES = [Route("/", _page), Route("/script", _page)]


def routes_behind(prefix: str) -> list[Route]:
    """The same where beacons and the script have a prefix."""
    here = {
        'src="/': f'src="{prefix}/',
        'src = "/"': f'src = "{prefix}/"',
        'sendBeacon("/': f'sendBeacon("{prefix}/',
        f"<code>/{SCRIPT}": f"<code>{prefix}/{SCRIPT}",
    }
    pages = {"/": PAGE, "/script": WITH_SCRIPT}

    async def page(request: Request) -> HTMLResponse:
        text = pages[request.url.path]
        for written, meant in here.items():
            text = text.replace(written, meant)
        return HTMLResponse(text)

    return [Route(path, page) for path in pages]
