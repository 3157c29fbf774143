/*! __VERSION__ */
/* The browser's half: it takes the calls that pages push on `_kmq`, makes each into one line, and hands lines over to the proxy,
 * several at once; what cannot be handed over waits in localStorage. A line never changes: sent again from wherever, it is the
 * same to the byte, and the vendor counts it once.
 *
 * No exception may reach the page: all that the page or the browser calls goes through safe().
 */
(function (S, w, d, nav) {
  "use strict";
  const script = d.currentScript;
  if (w._kmb || !script || !script.src) return; // pages load it twice, for each of the vendor's two scripts
  w._kmb = 1;

  const BASE = script.src.replace(/[^/?]*(\?.*)?$/, "");
  const SAME = BASE.startsWith(location.origin + "/");
  const ALIVE = safe(() => "keepalive" in Request.prototype)();
  const COOKIE = S.v ? "kmb_" : "km_"; // beside the vendor's script neither may end the other's session
  const QUEUE = "_q1"; // in localStorage, and the lock's name
  const DAY = 86400; // seconds

  function safe(f) {
    return (...args) => {
      try {
        return f(...args);
      } catch (_) {}
    };
  }
  const nothing = () => {};
  const now = () => Math.floor(Date.now() / 1000);
  const offline = () => nav.onLine === false;
  const page = () => location.href.split("#")[0].replace(/\s/g, "%20").slice(0, 2000);

  /* The server cuts at the API's limits; here, only what is absurd. Half a surrogate pair has no UTF-8. */
  const escaped = (text) =>
    encodeURIComponent(String(text).slice(0, 1024).replace(/[\ud800-\udfff]/gu, "\ufffd"));

  /* ---- Cookies and consent, as proxy/collector/consent.py and identity.py have it */

  const refused = {}; // cookies that the browser does not keep: they last as long as the page

  function cookie(name) {
    let found;
    safe(() =>
      d.cookie.split(";").forEach((pair) => {
        const at = pair.indexOf("=");
        if (found === undefined && at >= 0 && pair.slice(0, at).trim() === name) found = pair.slice(at + 1).trim();
      })
    )();
    return found;
  }

  function present(wanted, empty) {
    const at = wanted.indexOf("=");
    let value = cookie(at < 0 ? wanted : wanted.slice(0, at));
    if (value === undefined) return false;
    value = value.replace(/^"+|"+$/g, "");
    if (at >= 0) return value === wanted.slice(at + 1);
    return value ? !/^(0|false|no)$/i.test(value) : empty;
  }

  const objects = () =>
    (S.g && nav.globalPrivacyControl) ||
    (S.n && nav.doNotTrack == "1") ||
    (S.o && present(S.o, true)) ||
    (S.r && !present(S.r, false));

  function read(name) {
    let value = (cookie(COOKIE + name) || refused[name] || "").replace(/^"+|"+$/g, "");
    safe(() => (value = decodeURIComponent(value)))();
    return identity(value);
  }

  function write(name, value, seconds, domain) {
    safe(() => {
      d.cookie =
        COOKIE + name + "=" + value + ";path=/;samesite=lax;max-age=" + seconds +
        (domain ? ";domain=" + domain : "") + (location.protocol == "https:" ? ";secure" : "");
    })();
  }

  function remember(name, value, seconds) {
    value = escaped(value);
    write(name, value, seconds || 400 * DAY, S.d);
    refused[name] = cookie(COOKIE + name) === value ? "" : value;
  }

  function forget(name) {
    refused[name] = "";
    write(name, "", 0);
    location.hostname.split(".").forEach((_, i, labels) => write(name, "", 0, labels.slice(i).join(".")));
  }

  /* ---- Who it is */

  let wish = ""; // who the page said it is, before there was consent
  let gone = ""; // the anonymous identity that this page gave up

  const identity = (id) =>
    /^(string|number)$/.test(typeof id) && String(id).trim() && String(id).length < 256 ? String(id) : "";

  function anonymous() {
    if (!S.i) return "";
    let id = read("ai");
    if (!id && !objects()) {
      id = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18)))).replace(/\+/g, "-").replace(/\//g, "_");
      remember("ai", id);
    }
    return id;
  }

  const person = () => read("ni") || anonymous();

  /* ---- The queue of what could not be handed over: lines of "SECONDS LINE", and nobody knows who else writes there */

  let spare = ""; // the queue where localStorage is denied
  let retrying;
  let wait = 1e4;

  function take() {
    let text = spare;
    spare = "";
    safe(() => {
      text = localStorage.getItem(QUEUE) + "\n" + text;
      localStorage.removeItem(QUEUE);
    })();
    return text.split("\n").filter((entry) => /^\d{9,11} [esa]\?[!-~]+ [!-~]*$/.test(entry));
  }

  function put(entries) {
    entries = entries.slice(-100);
    while (entries.join("\n").length > 6e4) entries.shift();
    const text = entries.join("\n");
    try {
      if (text) localStorage.setItem(QUEUE, text);
    } catch (_) {
      spare = text;
    }
  }

  const stored = (item) => (item.a = item.a || now()) + " " + item.t;

  function retry() {
    if (retrying) return;
    retrying = setTimeout(replay, wait);
    wait = Math.min(wait * 2, 3e5);
  }

  function keep(items) {
    if (items[0]) put(take().concat(items.map(stored)));
    retry();
  }

  const replay = safe(() => {
    clearTimeout(retrying);
    retrying = 0;
    if (!spare && !safe(() => localStorage.getItem(QUEUE))()) return;
    const all = () => {
      const entries = take();
      if (objects()) return; // and it is forgotten
      entries.forEach((entry) => {
        const a = parseInt(entry);
        const t = entry.slice(entry.indexOf(" ") + 1);
        const twin = flying.find((item) => item.t === t);
        if (twin) twin.k = 0; // under way from this very page, which sees how it ends
        else if (now() - a < 3 * DAY) pending.push({ t, a, f: nothing });
      });
      flush();
    };
    if (!nav.locks) return all();
    nav.locks
      .request(QUEUE, { ifAvailable: true }, (lock) => {
        if (!lock) return retry(); // another tab is at it
        safe(all)();
        return new Promise((free) => setTimeout(free, 1e3)); // until that tab, too, sees that the lines are taken
      })
      .catch(nothing);
  });

  /* ---- Handing over. An item: t its text, f its callback, s when it was sent, a when it was first kept, k whether a copy is kept */

  let pending = [];
  let flying = [];
  let bytes = 0; // in flight; browsers let a page have 64 KiB with keepalive
  let flushing;

  function landed(items) {
    flying = flying.filter((item) => !items.includes(item));
    items.forEach((item) => item.f());
  }

  function failed(items) {
    keep(items.filter((item) => !item.k));
    landed(items);
  }

  function taken(items) {
    wait = 1e4;
    const copies = items.filter((item) => item.k).map(stored);
    if (copies[0]) put(take().filter((entry) => !copies.includes(entry)));
    if (gone && read("ai") === gone) forget("ai"); // an answer still on its way brought it back
    landed(items);
  }

  const flush = safe((leaving) => {
    clearTimeout(flushing);
    flushing = 0;
    while (pending[0]) {
      let n = 0;
      let size = 0;
      while (n < 50 && pending[n] && (!n || size + pending[n].t.length < 3e4)) size += pending[n++].t.length + 1;
      const full = bytes && bytes + size > 6e4;
      if (full && !leaving) return; // it goes on with the next answer
      const items = pending.splice(0, n);
      if (leaving && (full || offline())) failed(items);
      else send(items, size, leaving);
    }
  });

  function send(items, size, leaving) {
    const url = BASE + S.b;
    const body = items.map((item) => item.t).join("\n");
    items.forEach((item) => (item.s = Date.now()));
    flying = flying.concat(items);
    if (!ALIVE) return (leaving ? (safe(() => nav.sendBeacon(url, body))() ? taken : failed) : images)(items);
    bytes += size;
    new Promise((answer) =>
      answer(
        fetch(url, {
          method: "POST",
          body,
          keepalive: true,
          mode: SAME ? "same-origin" : "no-cors",
          credentials: SAME ? "same-origin" : "include",
        })
      )
    )
      .then(
        (answer) => (SAME && !(answer && answer.status === 200) ? failed : taken),
        () => (offline() ? failed : images)
      )
      .then(
        safe((end) => {
          bytes -= size;
          end(items);
          flush();
        })
      );
  }

  /* A content security policy without connect-src, or a blocker, leaves images: each line a request, with the aliases of addresses. */
  function images(items) {
    items.forEach((item) => {
      const image = new Image(1, 1);
      item.s = 0; // does not outlive the page
      image.onload = safe(() => taken([item]));
      image.onerror = safe(() => failed([item]));
      image.src = address(item.t);
    });
  }

  function address(line) {
    const [kind, query] = line.split(" ")[0].split("?");
    const mark = S.p && S.p["*"];
    const named = (name) => {
      const plain = decodeURIComponent(name);
      if (plain != "*" && S.p && hasOwnProperty.call(S.p, plain)) return escaped(S.p[plain]);
      if (!mark || /^_[pntd]$/.test(plain)) return name;
      return mark + btoa(unescape(name)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
    };
    return BASE + S[kind] + "?" + query.replace(/(^|&)([^=]+)/g, (_, and, name) => and + named(name));
  }

  const leave = safe(() => {
    flush(true);
    const old = flying.filter((item) => !item.k && Date.now() - item.s > 1e3);
    if (old[0]) keep(old); // nobody will tell how they end
    old.forEach((item) => (item.k = 1));
  });

  /* ---- The calls */

  function once(f) {
    if (typeof f != "function" || S.v) return nothing; // beside the vendor's script, it calls
    let left = 1;
    const call = safe(() => left && ((left = 0), f()));
    setTimeout(call, 2e3); // whatever the network does: the page may wait for it
    return call;
  }

  function text(value) {
    if (value == null) return "";
    if (Array.isArray(value)) return value.join(",");
    if (!/^(object|function)$/.test(typeof value)) return String(value);
  }

  function post(kind, name, props, done, who) {
    const f = once(done);
    if (wish && !objects()) KM.identify(wish);
    who = !objects() && (who || person());
    if (!who) return setTimeout(f);
    const pairs = [];
    props = props && typeof props == "object" ? props : {};
    Object.keys(props).forEach(
      safe((key) => {
        const value = text(props[key]);
        if (key && value != null && (value || kind != "s") && !/^_[knptd]$/.test(key)) pairs.push(escaped(key) + "=" + escaped(value));
      })
    );
    if (kind == "s" && !pairs[0]) return setTimeout(f);
    if (name) pairs.push("_n=" + escaped(name));
    pairs.push("_p=" + escaped(who), "_t=" + escaped((props._d == 1 && text(props._t)) || now()), "_d=1");
    pending.push({ t: kind + "?" + pairs.join("&") + " " + page(), f });
    if (!flushing) flushing = setTimeout(flush);
    if (!read("vs")) remember("lv", now());
    remember("vs", 1, 1800);
  }

  const tracked = { click: [], submit: [] };

  const track = (type) => (element, name, props) => {
    const list = tracked[type];
    const same = list.find((one) => one.e === element && one.n === name);
    if (same) same.p = props; // pages that change without loading push it again each time
    else list.push({ e: element, n: name, p: props });
  };

  const watch = (type) =>
    d.addEventListener(
      type,
      safe(({ target }) => {
        tracked[type].forEach(
          safe((one) => {
            let e = one.e;
            if (typeof e == "string") {
              /* By the prototype: a form's own "closest" may be a field of that name. */
              if (!Element.prototype.closest.call(target, /[.#[:*>~+, ]/.test(e) ? e : '[id="' + e + '"]')) return;
            } else if (e !== target && !e.contains(target)) return;
            if (one.x) return; // a click on a label is followed by one on its field, in the same task
            one.x = setTimeout(() => (one.x = 0));
            KM.record(one.n, one.p);
          })
        );
        flush(true);
      }),
      true
    );

  const KM = {
    __proto__: null,
    i: person,

    record(name, props, done) {
      if (name && typeof name != "object") post("e", name, props, done);
      else KM.set(name || props, name ? props : done);
    },

    set(props, done) {
      post("s", "", props, done);
    },

    identify(id) {
      if (!id || /^(["']?)(null|nil|)\1$/.test(id)) return KM.clearIdentity();
      id = identity(id);
      wish = objects() ? id : "";
      if (!id || wish) return;
      if (!read("ni")) KM.alias(anonymous(), id);
      remember("ni", id);
    },

    alias(a, b) {
      a = identity(a);
      b = identity(b);
      if (a && b && a != b) post("a", b, 0, 0, a);
    },

    /* The anonymous identity goes, too: it is the old person's by its alias, and must not be aliased to the next one. */
    clearIdentity() {
      wish = "";
      if (!read("ni")) return;
      gone = read("ai");
      forget("ni");
      forget("ai");
    },

    trackClick: track("click"),
    trackClickOnOutboundLink: track("click"), // the vendor's delays the navigation; keepalive outlives the page
    trackSubmit: track("submit"),

    pageView() {
      KM.record("Page View", { "Viewed URL": page(), Referrer: d.referrer || "Direct" });
    },
  };
  Object.keys(KM).forEach((name) => (KM[name] = safe(KM[name])));

  const run = safe((call) => {
    if (typeof call == "function") return S.v || call(); // beside the vendor's script, it calls
    const [name, ...args] = Array.from(call);
    if (KM[name]) KM[name](...args);
  });

  /* ---- Unasked */

  /* Label of the host / name, if it is not the label / parameter of the terms, if it is not q: as proxy/enrich/search.py has it. */
  const ENGINES =
    "google.,bing.,duckduckgo./DuckDuckGo,ecosia.,qwant.,ask.,mojeek.,kagi.,daum.,seznam.,perplexity.,aol./AOL,search.brave.com$/Brave," +
    "so.com$/360 Search,search.yahoo.com$/Yahoo/p,search.yahoo.co.jp$/Yahoo/p,startpage.//query,swisscows.//query,naver.//query," +
    "sogou.//query,petalsearch./Petal Search/query,baidu.//wd,yandex.//text,ya.ru$/Yandex/text";

  const asked = (event) => (S.u || []).includes(event);

  function fromAddress() {
    const props = {};
    const campaign = {};
    let name, some;
    new URLSearchParams(location.search).forEach((value, key) => {
      if (key == "kmi") KM.identify(value);
      else if (key == "kme") name = value;
      else if (/^km_./.test(key)) props[key.slice(3)] = value;
      const found = /^utm_(source|medium|campaign|term|content)$/.exec(key.toLowerCase());
      if (found && value) {
        const of = { campaign: "Name", term: "Terms" }[found[1]] || found[1][0].toUpperCase() + found[1].slice(1);
        campaign["Campaign " + of] = some = campaign["Campaign " + of] || value;
      }
    });
    KM.record(name, props);
    if (some && asked("ad_campaign")) KM.record("Ad Campaign Hit", { ...campaign, URL: page() });
  }

  function fromReferrer() {
    const host = (d.referrer.split("/")[2] || "").toLowerCase();
    if (!asked("search_engine") || host == location.host) return;
    const found = ENGINES.split(",").find((engine) => ("." + host + "$").includes("." + engine.split("/")[0]));
    if (!found) return;
    const [label, name, param] = found.split("/");
    const terms = new URLSearchParams(d.referrer.split("?")[1]).get(param || "q");
    KM.record("Search Engine Hit", {
      "Search Engine": name || label[0].toUpperCase() + label.slice(1, -1),
      ...(terms && { "Search Terms": terms }),
    });
  }

  /* The vendor's script empties the queue and puts an object of its own in its place. Each call is seen once, wherever it comes by. */
  const seen = new WeakSet();
  const see = safe((call) => seen.has(call) || (seen.add(call), run(call)));
  let spy;

  const share = safe(() => {
    const queue = (w._kmq = w._kmq || []);
    if (queue.push === spy) return;
    const push = queue.push;
    if (queue.forEach) queue.forEach(see);
    spy = queue.push = function (...calls) {
      calls.forEach(see);
      return push.apply(this, calls);
    };
  });

  const start = safe(() => {
    const running = read("vs");
    if (S.v) {
      share();
      w._kmq.push(() => Promise.resolve().then(share)); // called by the vendor's script just before it replaces the queue
      setInterval(share, 500);
    } else {
      const queue = Array.isArray(w._kmq) ? w._kmq : [];
      const calls = queue.splice(0);
      queue.push = (...calls) => (calls.forEach(run), 0);
      w._kmq = queue;
      w.KM = KM;
      calls.forEach(run);
    }
    watch("click");
    watch("submit");
    d.addEventListener("visibilitychange", () => d.visibilityState == "hidden" && leave());
    w.addEventListener("pagehide", leave);
    w.addEventListener("online", replay);
    safe(fromAddress)();
    if (!running && asked("visited_site")) KM.record("Visited Site", { URL: page(), Referrer: d.referrer || "Direct" });
    safe(fromReferrer)();
    if (asked("page_view")) KM.pageView();
    if (running && !objects()) remember("vs", 1, 1800);
    replay();
  });

  if (d.prerendering) d.addEventListener("prerenderingchange", start, { once: true });
  else start();
})(__SETTINGS__, window, document, navigator);
