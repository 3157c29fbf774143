/* A browser for the script's tests: cookies, localStorage, timers and the network are here to be looked at and to be broken.
 * Time stands still until advance() is called. Promises go on when control returns to Python. */

const browser = {
  now: 1750000000000,
  jar: [], // {name, value, domain, until}
  stored: {},
  requests: [], // of every page
  answer: 200, // of fetch: a status, "refuse" (it rejects), or "hang"
  image: "load", // or "error", "hang"
  hanging: [],
  log: [],
  timers: [],
  broken: [], // "cookies", "storage", "full", "fetch", "keepalive"
  navigator: {
    onLine: true,
    locks: { request: (name, f) => new Promise((done) => browser.timers.push({ at: browser.now, f: () => done(f({ name })) })) },
  },
};

function advance(ms) {
  browser.timers.sort((a, b) => a.at - b.at);
  const next = browser.timers[0];
  if (!next || next.at > ms) return false;
  browser.timers.shift();
  browser.now = Math.max(browser.now, next.at);
  next.f();
  return true;
}

class URLSearchParams {
  constructor(text) {
    this.pairs = (text || "").replace(/^\?/, "").split("&").filter(Boolean).map((pair) => {
      const [name, ...rest] = pair.replace(/\+/g, " ").split("=");
      return [decodeURIComponent(name), decodeURIComponent(rest.join("="))];
    });
  }
  forEach(f) { this.pairs.forEach(([name, value]) => f(value, name)); }
  get(wanted) { const found = this.pairs.find(([name]) => name == wanted); return found ? found[1] : null; }
}

class URL {
  constructor(text) {
    const parts = /^(https?:)\/\/([^/?#]+)([^?#]*)(\?[^#]*)?/.exec(text);
    if (!parts) throw new TypeError("Invalid URL");
    Object.assign(this, { protocol: parts[1], host: parts[2], hostname: parts[2].split(":")[0], origin: parts[1] + "//" + parts[2] });
    Object.assign(this, { href: text, search: parts[4] || "", searchParams: new URLSearchParams(parts[4]) });
  }
}

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
function btoa(binary) {
  let bits = "";
  for (const c of binary) bits += c.charCodeAt(0).toString(2).padStart(8, "0");
  const text = (bits.match(/.{1,6}/g) || []).map((six) => BASE64[parseInt(six.padEnd(6, "0"), 2)]).join("");
  return text + "=".repeat(-text.length & 3);
}

class Target {
  constructor() { this.listeners = []; }
  addEventListener(type, f) { this.listeners.push([type, f]); }
  dispatch(type, event) { this.listeners.forEach(([of, f]) => of == type && f({ type, ...event })); }
}

class Element {
  constructor(tag, id, cls, parent) { Object.assign(this, { tag, id, cls, parent }); }
  matches(selector) {
    if (/^\[id="[^"\]]*"\]$/.test(selector)) return selector == '[id="' + this.id + '"]';
    if (!/^[.#]?[\w-]+$/.test(selector)) throw new SyntaxError(selector);
    return selector[0] == "." ? selector == "." + this.cls : selector[0] == "#" ? selector == "#" + this.id : selector == this.tag;
  }
  closest(selector) { return this.matches(selector) ? this : this.parent ? Element.prototype.closest.call(this.parent, selector) : null; }
  contains(other) { return other === this || Boolean(other.parent && this.contains(other.parent)); }
}

/* A page at this address, with what the page's own script did before the proxy's was loaded. */
function open(code, { url, referrer = "", script = url.split("/").slice(0, 3).join("/") + "/x/k.js", before = "", prerendering = false }) {
  const location = new URL(url);
  const broken = (what) => browser.broken.includes(what);
  const window = new Target();
  const document = new Target();
  const readable = (c) => c.until > browser.now && (c.domain == location.hostname || (c.domain[0] == "." && ("." + location.hostname).endsWith(c.domain)));
  Object.defineProperty(document, "cookie", {
    get() {
      if (broken("cookies")) throw new Error("SecurityError");
      return browser.jar.filter(readable).map((c) => c.name + "=" + c.value).join("; ");
    },
    set(text) {
      if (broken("cookies")) throw new Error("SecurityError");
      browser.log.push("cookie " + text);
      const [, name, value] = /^([^=;]*)=([^;]*)/.exec(text);
      const domain = (/;domain=\.?([^;]+)/.exec(text) || [])[1];
      if (domain && (!domain.includes(".") || !("." + location.hostname).endsWith("." + domain))) return;
      const c = { name, value, domain: domain ? "." + domain : location.hostname, text };
      c.until = browser.now + 1000 * /;max-age=(-?\d+)/.exec(text)[1];
      browser.jar = browser.jar.filter((old) => old.name != name || old.domain != c.domain);
      if (c.until > browser.now) browser.jar.push(c);
    },
  });
  Object.assign(document, { currentScript: script && { src: script }, referrer, hidden: false, prerendering });
  const storage = new Proxy(browser.stored, {
    set(_, name, value) {
      if (broken("full")) throw new Error("QuotaExceededError");
      browser.log.push("stored " + name);
      browser.stored[name] = String(value);
      return true;
    },
  });
  const request = (via, url, more) => browser.requests.push({ via, url, page: location.href, ...more });
  const fetch = (url, options) => {
    request("fetch", url, options);
    if (broken("fetch")) throw new Error("some other script's fetch");
    if (browser.answer == "refuse") return Promise.reject(new TypeError("Failed to fetch"));
    if (browser.answer == "hang") return new Promise((resolve, reject) => browser.hanging.push({ resolve, reject }));
    return Promise.resolve({ status: browser.answer });
  };
  class Image extends Target {
    set src(url) {
      request("image", url);
      if (browser.image != "hang") browser.timers.push({ at: browser.now, f: () => this.dispatch(browser.image) });
    }
  }
  const Request = function () {};
  if (!broken("keepalive")) Request.prototype.keepalive = false;
  const navigator = browser.navigator;
  navigator.sendBeacon = (url, body) => (request("beacon", url, { body }), true);
  Object.assign(window, { Request });
  const scope = {
    window, document, navigator, location, fetch, Image, Request, Element, URL, URLSearchParams, btoa,
    setTimeout: (f, ms) => browser.timers.push({ at: browser.now + (+ms || 0), f }),
    setInterval: (f, ms) => { const again = () => browser.timers.push({ at: browser.now + ms, f: () => { again(); f(); } }); again(); },
    queueMicrotask: (f) => Promise.resolve().then(f),
    crypto: { getRandomValues: (bytes) => bytes.map(() => Math.random() * 256) },
    Date: { now: () => browser.now },
  };
  const names = Object.keys(scope);
  const run = (text) => new Function(...names, "localStorage", "log", text).call(null, ...names.map((name) => scope[name]), storage, (x) => browser.log.push(x));
  const guarded = (text) =>
    broken("storage") ? new Function(...names, "denied", "with (denied) {" + text + "}").call(null, ...names.map((name) => scope[name]), { get localStorage() { throw new Error("SecurityError"); } }) : run(text);
  run(before);
  guarded(code);
  return { window, document, run, load: () => guarded(code) };
}
