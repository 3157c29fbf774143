"""Debian's two browsers behind one protocol: what a visitor does, in words that both of them know.

One process of each is enough for all tests, and one tab for most: `fresh` ends what a test opened and forgets what it left
behind. (What a site keeps in storage is its own; each test's has another port.)
"""

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from conftest import free_port, need, wait_for
from marionette_driver.by import By
from marionette_driver.errors import JavascriptException, MarionetteException, NoSuchWindowException
from marionette_driver.marionette import Marionette
from playwright.sync_api import Browser as PlaywrightBrowser
from playwright.sync_api import BrowserContext, ConsoleMessage, Error, sync_playwright
from playwright.sync_api import Page as PlaywrightPage

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",  # it cannot have one as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FIREFOX_PREFERENCES: dict[str, str | int | bool] = {
    # it must not ask anybody for anything
    "app.normandy.enabled": False,
    "app.update.auto": False,
    "app.update.disabledForTesting": True,
    "browser.newtabpage.enabled": False,
    "browser.region.network.url": "",
    "browser.safebrowsing.blockedURIs.enabled": False,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "browser.search.update": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage": "about:blank",
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "browser.topsites.contile.enabled": False,
    "datareporting.healthreport.uploadEnabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "datareporting.usage.uploadEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "extensions.update.enabled": False,
    "geo.provider.network.url": "",
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disableIPv6": True,
    "network.dns.disablePrefetch": True,
    "network.dns.localDomains": "localhost",
    "network.http.speculative-parallel-limit": 0,
    "network.prefetch-next": False,
    "network.trr.mode": 5,
    "security.OCSP.enabled": 0,
    "services.settings.server": "data:,nowhere/v1",
    "toolkit.telemetry.enabled": False,
    "toolkit.telemetry.server": "",
    "toolkit.telemetry.unified": False,
    # any name but localhost goes to a port where nobody listens
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    # "work offline" is meant for this machine's servers too
    "network.disable-localhost-when-offline": True,
    "network.manage-offline-status": False,
    # no process is started before there is a page for it, and nothing is drawn that moves
    "dom.ipc.processPrelaunch.enabled": False,
    "dom.ipc.processCount": 1,
    "browser.tabs.remote.separatePrivilegedContentProcess": False,
    "browser.tabs.remote.separateFileUriProcess": False,
    "network.process.enabled": False,
    "media.rdd-process.enabled": False,
    "media.utility-process.enabled": False,
    "extensions.webextensions.remote": False,
    "ui.prefersReducedMotion": 1,
}


class Gone(Exception):
    """Another page came while this one was asked."""


class Page(Protocol):
    """A tab."""

    def open(self, url: str) -> None:
        """Returns when it is loaded."""

    def run(self, javascript: str) -> Any:
        """The value that the statements return. Raises Gone, and RuntimeError for what they throw."""

    def click(self, css: str) -> None:
        """A visitor's click, not a script's."""

    def back(self) -> None: ...

    def forward(self) -> None: ...

    def close(self) -> None: ...


class Browser(Protocol):
    """A visitor's browser."""

    name: str

    def page(self) -> Page:
        """A new tab."""

    def private(self) -> Page:
        """A tab in a private window, the only one."""

    def pages(self) -> Sequence[Page]:
        """The open ones."""

    def cookies(self) -> dict[str, str]:
        """What the sites of this machine have set, names to values; private windows apart."""

    def set_cookie(self, url: str, name: str, value: str) -> None: ...

    def offline(self, really: bool) -> None:
        """As if the cable were pulled: scripts are told."""

    def refuse_cookies(self) -> None:
        """The visitor's setting: no cookies, no storage."""

    def object(self) -> None:
        """The visitor's setting: global privacy control."""

    def errors(self) -> list[str]:
        """What scripts threw or wrote to the console as an error. (Not what the browser tells of failed loads.)"""

    def fresh(self) -> None:
        """Everything closed and forgotten."""


class ChromiumPage:
    def __init__(self, page: PlaywrightPage) -> None:
        self._page = page

    def open(self, url: str) -> None:
        self._page.goto(url)

    def run(self, javascript: str) -> Any:
        try:
            return self._page.evaluate(f"() => {{ {javascript} }}")
        except Error as error:
            raise (Gone if "context was destroyed" in error.message else RuntimeError)(error.message) from None

    def click(self, css: str) -> None:
        self._page.click(css)

    def back(self) -> None:
        self._page.evaluate("() => { history.back() }")

    def forward(self) -> None:
        self._page.evaluate("() => { history.forward() }")

    def close(self) -> None:
        self._page.close(run_before_unload=False)


class Chromium:
    """A visitor is a browser context; a private window is another one."""

    name = "chromium"

    def __init__(self, browser: PlaywrightBrowser) -> None:
        self._browser = browser
        self._blocking = False
        self._objecting = False
        self._idle: list[PlaywrightPage] = []
        self._errors: list[str] = []
        self._context = self._new_context()

    def page(self) -> ChromiumPage:
        return ChromiumPage(self._idle.pop() if self._idle else self._context.new_page())

    def private(self) -> ChromiumPage:
        context = self._new_context()
        page = context.new_page()
        page.on("close", lambda _: context.close())
        return ChromiumPage(page)

    def pages(self) -> list[ChromiumPage]:
        return [ChromiumPage(page) for context in self._browser.contexts for page in context.pages]

    def cookies(self) -> dict[str, str]:
        return {cookie["name"]: cookie["value"] for cookie in self._context.cookies()}

    def set_cookie(self, url: str, name: str, value: str) -> None:
        self._context.add_cookies([{"name": name, "value": value, "url": url}])

    def offline(self, really: bool) -> None:
        self._context.set_offline(really)

    def refuse_cookies(self) -> None:
        self._block_cookies(True)

    def object(self) -> None:
        """Chromium has no such setting; this is what one with it does (the GPC specification, sections 3.2 and 3.3)."""
        self._objecting = True
        self._context.set_extra_http_headers({"sec-gpc": "1"})
        self._context.add_init_script("Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', {value: true})")

    def errors(self) -> list[str]:
        for page in self.pages():
            page.run("return 0")  # what was told before is heard with the answer
        return self._errors

    def fresh(self) -> None:
        if self._blocking:
            self._block_cookies(False)
        for context in self._browser.contexts:
            if context is not self._context or self._objecting:
                context.close()
        if self._objecting:
            self._objecting, self._context = False, self._new_context()
        for page in self._context.pages[1:]:
            page.close()
        for page in self._context.pages:
            page.goto("about:blank")
        self._context.clear_cookies()
        self._idle = self._context.pages
        self._errors = []

    def _new_context(self) -> BrowserContext:
        context = self._browser.new_context()
        context.on("weberror", lambda error: self._errors.append(str(error.error)))
        context.on("console", self._heard)
        return context

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and message.args:  # the browser's own have none
            self._errors.append(message.text)

    def _block_cookies(self, really: bool) -> None:
        """The setting "Don't allow sites to save data on your device", by the message that the settings' own page sends."""
        client = self._browser.new_browser_cdp_session()
        answers: list[str] = []
        client.on("Target.receivedMessageFromTarget", lambda event: answers.append(event["message"]))
        target = client.send("Target.createTarget", {"url": "chrome://settings/content/siteData"})
        session = client.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": False})
        said = f"chrome.send('setDefaultValueForContentType', ['cookies', '{'block' if really else 'allow'}']), 'said'"
        command = json.dumps({"id": 1, "method": "Runtime.evaluate", "params": {"expression": said}})

        def done() -> bool:
            client.send("Target.sendMessageToTarget", {"sessionId": session["sessionId"], "message": command})
            return any('"value":"said"' in answer for answer in answers)

        wait_for(done, "the setting of cookies")
        client.send("Target.closeTarget", target)
        client.detach()
        self._blocking = really


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    with bare_chromium() as browser:
        yield Chromium(browser)


@contextlib.contextmanager
def bare_chromium() -> Iterator[PlaywrightBrowser]:
    """For a module and not for longer: playwright holds the thread's event loop as long as it lives."""
    path = need("chromium", "chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=path, args=CHROMIUM_ARGUMENTS, ignore_default_args=["--disable-back-forward-cache"]
        )


class FirefoxPage:
    def __init__(self, marionette: Marionette, handle: str) -> None:
        self._marionette, self._handle = marionette, handle

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FirefoxPage) and self._handle == other._handle

    def _focused(self) -> Marionette:
        self._marionette.switch_to_window(self._handle)
        return self._marionette

    def open(self, url: str) -> None:
        self._focused().navigate(url)

    def run(self, javascript: str) -> Any:
        try:
            return self._focused().execute_script(javascript, sandbox=None)
        except (JavascriptException, NoSuchWindowException) as error:
            raise (Gone if "unload" in error.message or "discarded" in error.message else RuntimeError)(error.message) from None

    def click(self, css: str) -> None:
        self._focused().find_element(By.CSS_SELECTOR, css).click()

    def back(self) -> None:
        self._focused().go_back()

    def forward(self) -> None:
        self._focused().go_forward()

    def close(self) -> None:
        self._focused().close()


class Firefox:
    """One window for all; a private window is one of its own."""

    name = "firefox"

    def __init__(self, marionette: Marionette) -> None:
        self._marionette = marionette
        self._first = marionette.current_window_handle
        self._changed: list[str] = []
        self._idle: list[FirefoxPage] = []
        self._tabs: list[FirefoxPage] = []

    def page(self) -> FirefoxPage:
        page = self._idle.pop() if self._idle else self._opened("tab", False)
        self._tabs.append(page)
        return page

    def private(self) -> FirefoxPage:
        return self._opened("window", True)

    def _opened(self, kind: str, private: bool) -> FirefoxPage:
        self._marionette.switch_to_window(self._first)
        return FirefoxPage(self._marionette, self._marionette.open(type=kind, focus=True, private=private)["handle"])

    def pages(self) -> list[FirefoxPage]:
        return [FirefoxPage(self._marionette, handle) for handle in self._marionette.window_handles if handle != self._first]

    def cookies(self) -> dict[str, str]:
        found: dict[str, str] = self._privileged(
            "return Object.fromEntries(Services.cookies.cookies.filter(c => !c.originAttributes.privateBrowsingId)"
            ".map(c => [c.name, c.value]))"
        )
        return found

    def set_cookie(self, url: str, name: str, value: str) -> None:
        host = re.findall(r"//([^:/]+)", url)[0]
        self._privileged(
            "Services.cookies.add(arguments[0], '/', arguments[1], arguments[2], false, false, false,"
            " Date.now() + 86400000, {}, Ci.nsICookie.SAMESITE_LAX, Ci.nsICookie.SCHEME_HTTP)",
            host,
            name,
            value,
        )

    def offline(self, really: bool) -> None:
        self._privileged("Services.io.offline = arguments[0]", really)

    def refuse_cookies(self) -> None:
        self._prefer("network.cookie.cookieBehavior", 2)

    def object(self) -> None:
        self._prefer("privacy.globalprivacycontrol.functionality.enabled", True)
        self._prefer("privacy.globalprivacycontrol.enabled", True)

    def errors(self) -> list[str]:
        found: list[str] = self._privileged(
            "const thrown = Services.console.getMessageArray().filter(m => m instanceof Ci.nsIScriptError"
            " && !(m.flags & m.warningFlag) && m.category == 'content javascript').map(m => m.message);"
            "const told = Cc['@mozilla.org/consoleAPI-storage;1'].getService(Ci.nsIConsoleAPIStorage).getEvents()"
            ".filter(e => e.level == 'error' && /^http/.test(e.filename)).map(e => e.arguments.join(' '));"
            "return [...thrown, ...told]"
        )
        return found

    def fresh(self) -> None:
        open_ones = self.pages()
        self._idle, self._tabs = [page for page in self._tabs if page in open_ones][:1], []
        for page in open_ones:
            if page in self._idle:
                page.open("about:blank")
            else:
                page.close()
        self.offline(False)
        for name in self._changed:
            self._marionette.clear_pref(name)
        self._changed = []
        with self._marionette.using_context("chrome"):
            self._marionette.execute_async_script(
                "const done = arguments[0], {CLEAR_COOKIES_AND_SITE_DATA, CLEAR_ALL_CACHES} = Ci.nsIClearDataService;"
                "Services.clearData.deleteData(CLEAR_COOKIES_AND_SITE_DATA | CLEAR_ALL_CACHES, () => { "
                " Services.console.reset();"
                " Cc['@mozilla.org/consoleAPI-storage;1'].getService(Ci.nsIConsoleAPIStorage).clearEvents(); done() })"
            )

    def _prefer(self, name: str, value: str | int | bool) -> None:
        self._marionette.set_pref(name, value)
        self._changed.append(name)

    def _privileged(self, javascript: str, *arguments: Any) -> Any:
        self._marionette.switch_to_window(self._first, focus=False)
        with self._marionette.using_context("chrome"):
            return self._marionette.execute_script(javascript, script_args=arguments)


@contextlib.contextmanager
def firefox() -> Iterator[Firefox]:
    path = need("firefox-esr", "firefox-esr")
    with tempfile.TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True) as profile:
        port = free_port()
        preferences = {**FIREFOX_PREFERENCES, "marionette.port": port}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in preferences.items()]
        Path(profile, "user.js").write_text("\n".join(lines))
        with Path(profile, "firefox.log").open("wb") as log:
            process = subprocess.Popen(
                [path, "--headless", "--marionette", "--remote-allow-system-access", "--no-remote", "--profile", profile],
                stdout=log,
                stderr=log,
            )
        try:
            marionette = Marionette(port=port, startup_timeout=60)
            marionette.start_session({"pageLoadStrategy": "normal"})
            try:
                yield Firefox(marionette)
            finally:
                with contextlib.suppress(MarionetteException, OSError):
                    marionette.delete_session()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(page: Page, javascript: str) -> Any:
    """The expression's first true value, on the page or on the one after it."""

    def value() -> Any:
        try:
            return page.run(f"return {javascript}")
        except Gone:
            return None

    return wait_for(value, javascript)
