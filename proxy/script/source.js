/*! __VERSION__ */
/* The browser's half: it takes the calls that pages push on `_kmq`, makes each into one line, and hands lines over to the proxy,
 * several at once; what cannot be handed over waits in localStorage. A line never changes: sent again from wherever, it is the
 * same to the byte, and the vendor counts it once.
 *
 * No exception may reach the page: all that the page or the browser calls goes through safe(). And every visitor loads every byte:
 * a test has the limit.
 */
((S, w, d, nav) => {
  const script = d.currentScript;
  if (w._kmb || !script || !script.src) return; // pages load it twice, for each of the vendor's two scripts
  w._kmb = 1;

  const safe = (f) => (...args) => {
    try {
      return f(...args);
    } catch (_) {}
  };
  const nothing = () => {};

  const BASE = script.src.replace(/[^/?]*(\?.*)?$/, "");
  const SAME = BASE.startsWith(location.origin + "/");
  const ALIVE = w.Request && "keepalive" in Request.prototype;
  const COOKIE = S.v ? "kmb_" : "km_"; // beside the vendor's script neither may end the other's session
  const QUEUE = "_q1"; // in localStorage, and the lock's name
  const ALIASES = { __proto__: null, ...S.p };
  const EVENTS = S.u || [];

  const on = (target, type, f) => target.addEventListener(type, safe(f), true);
  const now = () => (Date.now() / 1000) >>> 0;
  const page = () => location.href.split("#")[0].slice(0, 2000);
  const referrer = () => d.referrer || "Direct";
  const base64 = (binary) => btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");

  /* The server cuts at the API's limits; here, only what is absurd. Half a surrogate pair has no UTF-8. */
  const escaped = (text) => encodeURIComponent(String(text).slice(0, 1024).replace(/[\ud800-\udfff]/gu, "\ufffd"));

  /* ---- Cookies and consent, as proxy/collector/consent.py and identity.py have it */

  const refused = {}; // cookies that the browser does not keep: they last as long as the page

  const cookie = safe((name) =>
    d.cookie.split(";").map((pair) => pair.trim().split(/=(.*)/)).find((pair) => pair[0] == name)[1].replace(/^"+|"+$/g, "")
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
    const value = cookie(COOKIE + name) || refused[name];
    return identity(safe(decodeURIComponent)(value || "") || value);
  };

  const write = safe((name, value, seconds, domain) => {
    d.cookie =
      COOKIE + name + "=" + value + ";path=/;samesite=lax;max-age=" + seconds +
      (domain ? ";domain=" + domain : "") + (location.protocol == "https:" ? ";secure" : "");
  });

  const remember = (name, value, seconds) => {
    value = escaped(value);
    write(name, value, seconds || 400 * 86400, S.d);
    refused[name] = cookie(COOKIE + name) == value ? "" : value;
  };

  const forget = (name) => {
    refused[name] = "";
    write(name, "", 0);
    location.hostname.split(".").forEach((_, i, labels) => write(name, "", 0, labels.slice(i).join(".")));
  };

  /* ---- Who it is */

  let wish = ""; // who the page said it is, before there was consent
  let gone = ""; // the anonymous identity that this page gave up

  const anonymous = () => {
    let id = S.i ? read("ai") : "";
    if (S.i && !id && !objects()) {
      id = base64(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18))));
      remember("ai", id);
    }
    return id;
  };

  const person = () => read("ni") || anonymous();

  /* ---- Lines. An item: t its text, f its callback, s when it was sent, a when it was first kept */

  let pending = [];
  let flying = [];
  let blocked; // fetch, though not images
  let leaving; // the page is going: what browsers then call failed has mostly been sent

  /* ---- The queue of what could not be handed over: lines of "SECONDS LINE", and nobody knows who else writes there */

  let store = safe(() => localStorage)() || {};
  let retrying;
  let wait = 5e3;

  const take = () => {
    const text = store[QUEUE] || "";
    delete store[QUEUE];
    return text.split("\n").filter((entry) => /^\d+ [esa]\?[!-~]+ [!-~]*$/.test(entry));
  };

  const put = (entries) => {
    let text;
    while ((text = entries.join("\n")).length > 6e4 || entries.length > 100) entries.shift();
    try {
      if (text) store[QUEUE] = text;
    } catch (_) {
      store = { [QUEUE]: text }; // it is full: then as long as the page lasts
    }
  };

  const entry = (item) => (item.a = item.a || now()) + " " + item.t;

  const keep = (items) => put([...new Set(take().concat(items.map(entry)))]);

  const retry = () => {
    if (retrying) return;
    wait = Math.min(wait * 2, 3e5);
    retrying = setTimeout(replay, wait);
  };

  const replay = safe(() => {
    retrying = 0;
    if (!store[QUEUE]) return;
    const all = () => {
      const entries = take();
      const copies = flying.map(entry); // they are under way, and will tell how they end
      if (objects()) return; // and it is forgotten
      entries.forEach((text) => {
        const [a, ...t] = text.split(" ");
        if (!copies.includes(text) && now() - a < 3 * 86400) pending.push({ t: t.join(" "), a, f: nothing });
      });
      flush();
    };
    if (!nav.locks) return all();
    const hold = () => {
      all();
      return new Promise((free) => setTimeout(free, 1e3)); // until every tab sees that the lines are taken
    };
    nav.locks.request(QUEUE, hold).catch(safe(all)); // a browser that refuses cookies refuses locks as well
  });

  /* ---- Handing over */

  const landed = (items) => {
    flying = flying.filter((item) => !items.includes(item));
    items.forEach((item) => item.f());
  };

  const failed = (items) => {
    keep(items);
    retry();
    landed(items);
  };

  const taken = (items) => {
    wait = 5e3;
    const entries = items.map(entry);
    put(take().filter((entry) => !entries.includes(entry)));
    if (gone && read("ai") == gone) forget("ai"); // an answer still on its way brought it back
    landed(items);
  };

  const flush = safe((hurry) => {
    while (pending[0]) {
      let n = 0;
      let size = 0;
      do size += pending[n++].t.length + 1;
      while (n < 50 && pending[n] && size + pending[n].t.length < 3e4);
      const items = pending.splice(0, n);
      if (hurry && !nav.onLine) failed(items);
      else send(items, hurry);
    }
  });

  const send = async (items, hurry) => {
    const body = items.map((item) => item.t).join("\n");
    let end = images;
    items.forEach((item) => (item.s = Date.now()));
    flying = flying.concat(items);
    if (blocked) end = leaving ? failed : images;
    else if (ALIVE)
      try {
        const answer = await fetch(BASE + S.b, {
          method: "POST",
          body,
          keepalive: true,
          ...(SAME ? { mode: "same-origin" } : { mode: "no-cors", credentials: "include" }),
        });
        end = SAME && answer.status != 200 ? failed : taken;
      } catch (_) {
        await new Promise((later) => setTimeout(later)); // it may have been cut off by a page that goes, which is told only now
        if (leaving) end = landed;
        else if (!nav.onLine) end = failed;
      }
    else if (hurry) end = safe(() => nav.sendBeacon(BASE + S.b, body))() ? taken : failed;
    safe(end)(items);
  };

  /* A content security policy without connect-src, or a blocker, leaves images: each line a request, with the aliases of addresses. */
  const images = (items) =>
    items.forEach((item) => {
      const image = new Image(1, 1);
      item.s = 0; // does not outlive the page
      on(image, "load", () => {
        blocked = ALIVE;
        taken([item]);
      });
      on(image, "error", () => failed([item]));
      image.src = safe(address)(item.t);
    });

  const address = (line) => {
    let [, kind, query, from] = line.match(/(.).(.+) (.*)/);
    /* An image's page is the one it is sent from; of another page, the line would be another beacon. */
    if (from != page() && !/\bURL=/.test(query)) query += "&URL=" + escaped(from);
    const mark = ALIASES["*"];
    const named = (name) => {
      const plain = decodeURIComponent(name);
      if (plain != "*" && ALIASES[plain]) return ALIASES[plain];
      return mark && !/^_[pntd]$/.test(plain) ? mark + base64(unescape(name)) : name;
    };
    return BASE + S[kind] + "?" + query.replace(/[^&=]+(?==)/g, named);
  };

  const leave = () => {
    flush(true);
    keep(flying.filter((item) => Date.now() - item.s > 1e3)); // nobody will tell how they end
  };

  /* ---- The calls */

  const once = (f) => {
    if (typeof f != "function" || S.v) return nothing; // beside the vendor's script, it calls
    let left = 1;
    const call = safe(() => left-- > 0 && f());
    setTimeout(call, 2e3); // whatever the network does: the page may wait for it
    return call;
  };

  const text = (value) => {
    if (value == null) return "";
    if (Array.isArray(value)) return value.join(",");
    if (!/^[of]/.test(typeof value)) return String(value); // no object, no function
  };

  const post = (kind, name, props, done, who) => {
    const f = once(done);
    if (wish && !objects()) KM.identify(wish);
    who = !objects() && (who || person());
    props = Object(typeof props == "object" && props);
    const pairs = [];
    Object.keys(props).forEach(
      safe((key) => {
        const value = text(props[key]);
        if (key && (value || (value == "" && kind != "s")) && !/^_[knptd]$/.test(key)) pairs.push(escaped(key) + "=" + escaped(value));
      })
    );
    if (!who || (kind == "s" && !pairs[0])) return setTimeout(f);
    if (name) pairs.push("_n=" + escaped(name));
    pairs.push("_p=" + escaped(who), "_t=" + escaped((props._d == 1 && text(props._t)) || now()), "_d=1");
    pending.push({ t: kind + "?" + pairs.join("&") + " " + page(), f });
    setTimeout(flush);
    if (!read("vs")) remember("lv", now());
    remember("vs", 1, 1800);
  };

  let tracked = [];

  /* The same again, as pages push it that change without loading, takes the place of the first. */
  const track = (type) => (element, name, props) => {
    tracked = tracked.filter((one) => one.type != type || one.element != element || one.name != name);
    tracked.push({ type, element, name, props });
  };

  const acted = ({ type, target }) => {
    tracked.forEach(
      safe((one) => {
        const e = one.element;
        if (
          one.type == type &&
          !one.x && // a click on a label is followed by one on its field, in the same task
          (typeof e == "string" // by the prototype: a form's own "closest" may be a field of that name
            ? Element.prototype.closest.call(target, /[^\w\x80-\uffff-]/.test(e) ? e : '[id="' + e + '"]')
            : e.contains(target))
        ) {
          one.x = setTimeout(() => (one.x = 0));
          KM.record(one.name, one.props);
        }
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
      KM.record("Page View", { "Viewed URL": page(), Referrer: referrer() });
    },
  };
  for (const name in KM) KM[name] = safe(KM[name]);

  /* ---- The queue of the page. The vendor's script empties it and puts an object of its own in its place: each call is seen once,
   * wherever it comes by, and functions and callbacks are the vendor's to call. */

  const seen = new WeakSet();
  let spy;

  const run = safe((call) => {
    const callable = typeof call == "function";
    if (S.v && (callable || seen.has(call) || !seen.add(call))) return;
    if (callable) return call();
    const [name, ...args] = call;
    KM[name](...args);
  });

  const share = safe(() => {
    const queue = (w._kmq = S.v || Array.isArray(w._kmq) ? w._kmq || [] : []);
    const push = queue.push;
    if (push == spy) return;
    spy = queue.push = (...calls) => {
      calls.forEach(run);
      return S.v && push.apply(queue, calls);
    };
    if (queue.splice) (S.v ? queue.slice() : queue.splice(0)).forEach(run);
  });

  /* ---- Unasked */

  /* Name / host, if it is not the name with any ending / parameter of the terms, if it is not q: as proxy/enrich/search.py has it. */
  const ENGINES =
    "Google,Bing,DuckDuckGo,Ecosia,Qwant,Ask,Mojeek,Kagi,Daum,Seznam,Perplexity,AOL,Brave/search.brave.,360 Search/so.com$," +
    "Yahoo/search.yahoo./p,Startpage//query,Swisscows//query,Naver//query,Sogou//query,Petal Search/petalsearch./query," +
    "Baidu//wd,Yandex//text,Yandex/ya.ru$/text";
  const CAMPAIGN = { source: "Source", medium: "Medium", campaign: "Name", term: "Terms", content: "Content" };

  const fromAddress = () => {
    const query = new URLSearchParams(location.search);
    const props = {};
    const campaign = { URL: page() };
    let hit;
    query.forEach((value, key) => {
      if (key == "kmi" && value) KM.identify(value);
      if (/^km_./.test(key)) props[key.slice(3)] = value;
    });
    KM.record(query.get("kme"), props);
    for (const key in CAMPAIGN) {
      const value = query.get("utm_" + key);
      if (value) hit = campaign["Campaign " + CAMPAIGN[key]] = value;
    }
    if (hit && EVENTS.includes("ad_campaign")) KM.record("Ad Campaign Hit", campaign);
  };

  const fromReferrer = () => {
    const { host, searchParams } = new URL(d.referrer);
    if (host == location.host || !EVENTS.includes("search_engine")) return;
    ENGINES.split(",").forEach((engine) => {
      const [name, label, param] = engine.split("/");
      const terms = searchParams.get(param || "q");
      if (("." + host + "$").includes("." + (label || name.toLowerCase() + ".")))
        KM.record("Search Engine Hit", { "Search Engine": name, ...(terms && { "Search Terms": terms }) });
    });
  };

  const start = safe(() => {
    const running = read("vs");
    if (!S.v) w.KM = KM; // functions in the queue call it
    share();
    if (S.v) {
      w._kmq.push(() => queueMicrotask(share)); // called by the vendor's script just before it replaces the queue
      setInterval(share, 500);
    }
    on(d, "click", acted);
    on(d, "submit", acted);
    on(d, "visibilitychange", () => d.hidden && leave());
    on(w, "pagehide", () => {
      leaving = true;
      leave();
    });
    on(w, "pageshow", () => (leaving = false));
    on(w, "online", replay);
    safe(fromAddress)();
    if (!running && EVENTS.includes("visited_site")) KM.record("Visited Site", { URL: page(), Referrer: referrer() });
    safe(fromReferrer)();
    if (EVENTS.includes("page_view")) KM.pageView();
    if (running && !objects()) remember("vs", 1, 1800);
    replay();
  });

  if (d.prerendering) on(d, "prerenderingchange", start);
  else start();
})(__SETTINGS__, window, document, navigator);
