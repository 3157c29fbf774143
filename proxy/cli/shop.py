"""The demo's pretend shop: one page with plain <img> beacons, and buttons. No script is needed for the first two beacons."""

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>The Teapot Shop</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; color: #222 }
 button { font: inherit; padding: .5rem 1rem; margin: .25rem .25rem .25rem 0; border: 1px solid #999; border-radius: 6px }
 code { background: #eee; padding: 0 .3em } .note { color: #666 }
</style>
<h1>The Teapot Shop</h1>
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
</html>
"""


async def _page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


ROUTES = [Route("/", _page)]
