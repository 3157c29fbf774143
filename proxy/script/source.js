/*! __VERSION__ */
/* The browser's half: it takes the calls that pages push on `_kmq`, makes each into one line, and hands lines over to the proxy,
 * several at once; what cannot be handed over waits in localStorage. A line never changes: sent again from wherever, it is the
 * same to the byte, and the vendor counts it once.
 *
 * No exception may reach the page: all that the page or the browser calls goes through safe(). And every visitor loads every byte:
 * a test has the limit. BESIDE is true in the one of two builds that is for pages with the vendor's own script beside this one.
 */
((S, w, d, nav) => {
  const script = d.currentScript;
  if (w._kmb || !script) return; // pages load it twice, for each of the vendor's two scripts
  w._kmb = 1;

  const safe = (f) => (...args) => {
    try {
      return f(...args);
    } catch (_) {}
  };

  const BASE = script.src.replace(/[^/?]*(\?.*)?$/, "");
  const SAME = BASE.startsWith(location.origin + "/");
  const ALIVE = w.Request && "keepalive" in Request.prototype;
  const COOKIE = BESIDE ? "kmb_" : "km_"; // beside the vendor's script neither may end the other's session
  const QUEUE = "_q1"; // in localStorage, and the lock's name
  const EVENTS = S.u || [];

  const on = (target, type, f) => target.addEventListener(type, safe(f), true);
  const now = () => (Date.now() / 1000) >>> 0;
  const page = () => location.href.split("#")[0];
  const base64 = (binary) => btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");

  /* The server cuts at the API's limits; here, only what is absurd. Half a surrogate pair has no UTF-8. */
  const escaped = (text) => encodeURIComponent(String(text).slice(0, 1024).replace(/[\ud800-\udfff]/gu, "\ufffd"));

  /* ---- Cookies and consent, as proxy/collector/consent.py and identity.py have it */

  const refused = {}; // cookies that the browser does not keep: they last as long as the page

  const cookie = safe((name) =>
    ("; " + d.cookie).split("; " + name + "=")[1].split(";")[0].replace(/^"+|"+$/g, "")
  );

  const present = (wanted, empty) => {
    const [name, value] = wanted.split(/=(.*)/);
    const found = cookie(name);
    if (found == null) return;
    if (value != null) return found == value;
    return found ? !/^(0|false|no)$/i.test(found) : empty;
  };

  const objects = () =>
    (S.g && nav.globalPrivacyControl) || (S.n && nav.doNotTrack == 1) || (S.o && present(S.o, true)) || (S.r && !present(S.r));

  const identity = (id) => {
    id = /^[sn]/.test(typeof id) ? String(id) : ""; // a string or a number
    return id.trim() && id.length < 256 ? id : "";
  };

  const read = (name) => {
    const value = refused[name] || cookie(COOKIE + name);
    return identity(safe(decodeURIComponent)(value || "") || value);
  };

  const write = safe((name, value, seconds, domain = "") => {
    d.cookie =
      COOKIE + name + "=" + value + ";path=/;samesite=lax;max-age=" + seconds + ";domain=" + domain +
      (location.protocol == "https:" ? ";secure" : "");
  });

  const remember = (name, value, seconds) => {
    value = escaped(value);
    const set = () => {
      write(name, value, seconds || 3456e4 /* 400 days */, S.d);
      return cookie(COOKIE + name) == value;
    };
    /* One of that name on another domain, as the vendor's library sets it, would be read first. */
    refused[name] = set() || (forget(name), set()) ? "" : value;
  };

  const forget = (name) => {
    refused[name] = "";
    write(name, "", 0);
    location.hostname.split(".").forEach((_, i, labels) => write(name, "", 0, labels.slice(i).join(".")));
  };

  /* ---- Who it is */

  const person = () => {
    let id = read("ni") || (S.i && read("ai"));
    if (!id && S.i && !objects()) {
      id = base64(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18))));
      remember("ai", id);
    }
    return id;
  };

  /* ---- Lines. An item: t "SECONDS LINE", when it was said and what goes to the proxy; f its callback; s when it was sent */

  let pending = [];
  let flying = [];
  let blocked; // fetch, though not images; 0 once a fetch was answered
  let leaving; // the page is going: what browsers then call failed has mostly been sent

  const texts = (items) => items.map((item) => item.t);
  const said = (items) => texts(items).join("\n").replace(/^\d+ /gm, "");

  /* ---- The queue of what could not be handed over, in localStorage; nobody knows who else writes there */

  let store = safe(() => localStorage)() || {};

  const kept = () => (store[QUEUE] || "").split("\n");

  const sound = (text) => /^\d+ [esa]\?[!-~]{1,20000} [!-~]*$/.test(text); // one that is absurd must not cost all others

  const put = (entries) => {
    let text;
    entries = entries.filter(sound);
    while ((text = entries.join("\n")).length > 6e4 || entries.length > 100) entries.shift();
    try {
      if (text) store[QUEUE] = text;
      else delete store[QUEUE];
    } catch (_) {
      store = { [QUEUE]: text }; // it is full: then as long as the page lasts
    }
  };

  const keep = (items) => items[0] && !objects() && put([...new Set(kept().concat(texts(items)))]);

  const replay = safe(() => {
    if (!store[QUEUE]) return;
    const all = () => {
      const entries = kept();
      put([]);
      if (objects()) return; // and it is forgotten
      entries.forEach((t) => {
        if (sound(t) && !texts(flying).includes(t) && now() - parseInt(t) < 259200 /* three days */) pending.push({ t, s: 1 });
      });
      flush();
    };
    const hold = () => {
      safe(all)();
      return new Promise((free) => setTimeout(free, 1e3)); // until every tab sees that the lines are taken
    };
    safe(() => nav.locks.request(QUEUE, hold).catch(hold))() || hold(); // without cookies there are no locks either
  });

  /* ---- Handing over */

  const landed = (items) => {
    flying = flying.filter((item) => !items.includes(item));
    items.forEach((item) => item.f && item.f());
    flush();
  };

  const failed = (items) => {
    keep(items);
    landed(items);
  };

  const taken = (items) => {
    if (store[QUEUE]) put(kept().filter((text) => !texts(items).includes(text)));
    landed(items);
  };

  const flush = safe((hurry) => {
    while (pending[0]) {
      let n = 0;
      let size = 0;
      do size += pending[n++].t.length + 1;
      while (n < 50 && pending[n] && size + pending[n].t.length < 3e4);
      const full = texts(flying).join().length + size > 6e4; // browsers let a page have 64 KiB under way
      if (full && !hurry) return; // it goes on with the next answer
      const items = pending.splice(0, n);
      if (hurry && (full || !nav.onLine)) failed(items);
      else send(items, hurry);
    }
  });

  const send = async (items, hurry) => {
    const body = said(items);
    const url = BASE + S.b;
    let end = images;
    items.forEach((item) => (item.s = item.s || Date.now())); // of what failed before it stays 1: it is kept when the page goes
    flying = flying.concat(items);
    if (blocked) end = leaving ? failed : images;
    else
      try {
        if (ALIVE) {
          const answer = await fetch(url, {
            method: "POST",
            body,
            keepalive: true,
            ...(SAME ? {} : { mode: "no-cors", credentials: "include" }),
          });
          blocked = 0;
          end = SAME && answer.status != 200 ? failed : taken;
        } else if (hurry && nav.sendBeacon(url, body)) end = taken;
      } catch (_) {
        /* A policy says no at once; and a page that goes may see no other task. Later, it may have been cut off by a page that goes. */
        if (Date.now() - items[0].s > 9) await new Promise(setTimeout); // this is told only now
        if (leaving) end = blocked == 0 ? landed : failed;
        else if (!nav.onLine) end = failed;
      }
    safe(end)(items);
  };

  /* A content security policy without connect-src, or a blocker, leaves images: each line a request, and nothing to read in it. */
  const images = (items) =>
    objects() ? landed(items) : items.forEach((item) => {
      const image = new Image(1, 1);
      item.s = 1; // does not outlive the page
      on(image, "load", () => {
        blocked = ALIVE;
        taken([item]);
      });
      on(image, "error", () => failed([item]));
      image.src = BASE + S.b + "?" + base64(said([item]));
    });

  const leave = () => {
    flush(true);
    keep(flying.filter((item) => store[QUEUE] || Date.now() - item.s > 1e3)); // in trouble, and nobody will tell how they end
  };

  /* ---- The calls */

  const once = (f) => {
    if (BESIDE || !f) return; // beside the vendor's script, it calls
    const call = safe(() => {
      const g = f;
      f = 0;
      g();
    });
    setTimeout(call, 2e3); // whatever the network does: the page may wait for it
    return call;
  };

  const post = (kind, name, props, done, who) => {
    const f = once(done);
    who = !objects() && (who || person());
    props = Object(typeof props == "object" && props);
    const pairs = [];
    Object.keys(props).forEach(
      safe((key) => {
        const value = props[key] == null ? "" : String(props[key]);
        if (key && (value || kind != "s") && !/^_[knptd]$/.test(key)) pairs.push(escaped(key) + "=" + escaped(value));
      })
    );
    if (!who || (kind == "s" && !pairs[0])) return f && setTimeout(f);
    if (name) pairs.push("_n=" + escaped(name));
    pairs.push("_p=" + escaped(who), "_t=" + escaped((props._d == 1 && props._t) || now()), "_d=1");
    pending.push({ t: now() + " " + kind + "?" + pairs.join("&") + " " + page(), f });
    setTimeout(flush);
    remember("vs", 1, 1800);
  };

  const tracked = {};

  /* The same again, as pages push it that change without loading, takes the place of the first. */
  const track = (type) => (e, n, p) => (tracked[[type, e, n]] = { t: type, e, n, p });

  const acted = ({ type, target }) => {
    Object.values(tracked).forEach(
      safe((one) => {
        /* A click on a label is followed by one on its field, in the same task. And a form may have a field called "closest". */
        const selector = /[^\w-]/.test(one.e) ? one.e : '[id="' + one.e + '"]';
        if (one.t != type || one.x || !Element.prototype.closest.call(target, selector)) return;
        one.x = setTimeout(() => (one.x = 0));
        KM.record(one.n, one.p);
      })
    );
    flush(true);
  };

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
      if (!id || /^(null|nil)$/.test(id)) return KM.clearIdentity();
      id = identity(id);
      if (!id || objects()) return;
      const who = person();
      /* An anonymous identity is aliased once: to a second person it would merge the two for ever. */
      if (!read("ni") && who && read("aa") != who) {
        KM.alias(who, id);
        remember("aa", who);
      }
      remember("ni", id);
    },
    alias(a, b) {
      a = identity(a);
      b = identity(b);
      if (a && b && a != b) post("a", b, 0, 0, a);
    },
    clearIdentity() {
      forget("ni");
    },
    trackClick: track("click"),
    trackClickOnOutboundLink: track("click"), // the vendor's delays the navigation; keepalive outlives the page
    trackSubmit: track("submit"),
    pageView() {
      KM.record("Page View", { "Viewed URL": page(), Referrer: d.referrer || "Direct" });
    },
  };
  for (const name in KM) KM[name] = safe(KM[name]);

  /* ---- The queue of the page. The vendor's script empties it and puts an object of its own in its place: each call is seen once,
   * wherever it comes by, and functions and callbacks are the vendor's to call. */

  const call = (what) => {
    const [name, ...args] = what;
    KM[name](...args);
  };

  const takeOver = BESIDE
    ? () => {
        const seen = new WeakSet();
        const see = safe((what) => typeof what == "function" || seen.has(what) || call(what, seen.add(what)));
        let spy;
        const share = safe(() => {
          const queue = (w._kmq = w._kmq || []);
          const push = queue.push;
          if (push == spy) return;
          spy = queue.push = (...calls) => {
            calls.forEach(see);
            return push.apply(queue, calls);
          };
          queue.slice().forEach(see); // last, since the vendor's object may have none
        });
        share();
        w._kmq.push(() => queueMicrotask(share)); // called by the vendor's script just before it replaces the queue
        setInterval(share, 500);
      }
    : () => {
        const run = safe((what) => (typeof what == "function" ? what() : call(what)));
        const queue = (w._kmq = Array.isArray(w._kmq) ? w._kmq : []);
        w.KM = KM; // functions in the queue call it
        queue.push = (...calls) => calls.forEach(run);
        queue.splice(0).forEach(run);
      };

  /* ---- Unasked */

  /* What came from where is for the server to say (enrichers campaign and search); here it is only seen that something did. */
  const ENGINE =
    /(^|\.)((google|bing|duckduckgo|ecosia|qwant|startpage|ask|aol|kagi|perplexity|naver|daum|seznam|sogou|baidu|yandex|search\.(brave|yahoo))\.|ya\.ru$)/;

  const unasked = (name, props) => EVENTS.includes(name) && KM.record(name, props);

  const fromAddress = () => {
    const query = new URLSearchParams(location.search);
    const props = {};
    query.forEach((value, key) => {
      if (key == "kmi" && value) KM.identify(value);
      if (/^km_./.test(key)) props[key.slice(3)] = value;
    });
    KM.record(query.get("kme"), props);
  };

  const start = safe(() => {
    const running = read("vs");
    takeOver();
    on(d, "click", acted);
    on(d, "submit", acted);
    on(d, "visibilitychange", leave); // to visible, too: there is nothing to lose by it
    on(w, "pagehide", () => {
      leaving = true;
      leave();
    });
    on(w, "pageshow", () => (leaving = false));
    on(w, "online", replay);
    safe(fromAddress)();
    const came = { URL: page(), Referrer: d.referrer || "Direct" };
    if (!running) unasked("Visited Site", came);
    if (/[?&]utm_\w+=./i.test(came.URL)) unasked("Ad Campaign Hit", came);
    const from = came.Referrer.split("/")[2];
    if (from != location.host && ENGINE.test(from)) unasked("Search Engine Hit", came);
    if (EVENTS.includes("Page View")) KM.pageView();
    if (running && !objects()) remember("vs", 1, 1800);
    replay();
    setInterval(replay, 3e4);
  });

  if (d.prerendering) on(d, "prerenderingchange", start);
  else start();
})(__SETTINGS__, window, document, navigator);
