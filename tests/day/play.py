"""The day's course: what an operator does, in order, under traffic; and the account that is given at its end."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chaos.driver import Driver, quantile
from tests.chaos.laboratory import Upstream
from tests.conftest import free_port, wait_for
from tests.day.stage import HOST, PREFIX, Installation, Nginx, Photographer, Service

KEYS = ("first-key-17ab", "second-key-93cd")
Tell = Callable[[str], None]
Account = dict[str, Any]


class Day:
    """One day. `run` gives the account."""

    def __init__(self, place: Path, rate: float, away_s: float, pictures: Path | None, tell: Tell) -> None:
        self._place, self._rate, self._away_s, self._tell = place, rate, away_s, tell
        self._key, self._config, self._admin = place / "api_key", place / "beacon-proxy.toml", free_port()
        self._pictures = Photographer(pictures, self._admin)
        self._account: Account = {}

    async def run(self) -> Account:
        """The whole."""
        self._tell("building and installing")
        installation = await asyncio.to_thread(Installation, self._place)
        self._account["installed"] = await asyncio.to_thread(installation.install)
        upstream = Upstream()
        self._write_settings(upstream.url)
        self._tell(installation.run("check", "--config", str(self._config)).splitlines()[-1])
        service = Service(installation, self._config, self._place / "serve.log")
        service.start()
        nginx = Nginx(self._place, service.port)
        try:
            async with self._traffic(nginx) as driver:
                await self._course(installation, upstream, service, nginx, driver)
                await self._phase(driver, "evening", 3)
            return await self._give_account(upstream, driver)
        finally:
            nginx.stop()
            service.vanish()
            upstream.stop()

    async def _course(
        self, installation: Installation, upstream: Upstream, service: Service, nginx: Nginx, driver: Driver
    ) -> None:
        await self._phase(driver, "calm", 10)
        await self._picture("1-calm")
        self._tell(f"the upstream is away for {self._away_s:g} s")
        upstream.ask("fault closed")
        await self._phase(driver, "upstream away", self._away_s)
        self._account["backlog_after_outage"] = self._status()["pending"]
        await self._picture("2-upstream-away")
        upstream.ask("fault ok")
        drained = await self._timed(lambda: self._status()["pending"] < self._rate, "the backlog to drain")
        self._account["drained_in_s"] = drained
        await self._phase(driver, "drained", 3)
        self._tell("restart")
        await self._restart(service, driver, "restart")
        self._tell("upgrade")
        self._account["upgraded_to"] = await asyncio.to_thread(installation.install, ".post1")
        await self._restart(service, driver, "upgrade")
        self._tell("the vendor refuses beacons for a while; then the dead letters are replayed")
        upstream.ask("fault 404")
        await self._phase(driver, "refused by the vendor", 5)
        await self._picture("3-dead-letters")
        upstream.ask("fault ok")
        await self._phase(driver, "calm again", 2)
        self._account["dead"] = self._status()["dead"]
        replayed = await asyncio.to_thread(installation.run, "dead", "replay", "--json", "--config", str(self._config))
        self._account["replayed"] = json.loads(replayed)["replayed"]
        self._tell("the key is rotated")
        self._key.write_text(KEYS[1])
        service.reload()
        await self._phase(driver, "new key", 5)
        self._tell("the collectors' host is gone for a while; nginx keeps the beacons, and they are ingested")
        await asyncio.to_thread(service.vanish)
        await self._phase(driver, "no collector", 5)
        service.start()
        await self._phase(driver, "back", 3)
        lost = await asyncio.to_thread(nginx.reopen_logs)
        ingested = await asyncio.to_thread(installation.run, "ingest", "--json", "--config", str(self._config), str(lost))
        self._account["ingested"] = json.loads(ingested)
        await self._picture("4-evening")
        await self._picture("5-evening-on-a-phone", 375, 800)

    def _write_settings(self, upstream: str) -> None:
        self._key.write_text(KEYS[0])
        self._key.chmod(0o600)
        self._config.write_text(
            f'api_key_file = "{self._key}"\nupstream = "{upstream}"\nspool = "sqlite:{self._place}/spool"\n'
            f'prefix = "{PREFIX}"\nport = 8000\nadmin_port = {self._admin}\nbackoff_base = 0.1\nbackoff_cap = 1.0\n'
        )

    @asynccontextmanager
    async def _traffic(self, nginx: Nginx) -> AsyncIterator[Driver]:
        trust = ssl.create_default_context(cafile=str(nginx.certificate))
        driver = Driver(nginx.port, self._rate, prefix=f"{PREFIX}/e", tls=trust, host=HOST)
        driver.start()
        try:
            yield driver
        finally:
            await driver.stop()

    async def _phase(self, driver: Driver, name: str, seconds: float) -> None:
        driver.phase = name
        await asyncio.sleep(seconds)

    async def _restart(self, service: Service, driver: Driver, name: str) -> None:
        driver.phase = name
        await asyncio.to_thread(service.stop)
        service.start()
        await asyncio.sleep(3)

    async def _picture(self, name: str, width: int = 1280, height: int = 900) -> None:
        await asyncio.to_thread(self._pictures.take, name, width, height)

    def _status(self) -> Account:
        from proxy.admin.summary import read
        from proxy.spool.port import SpoolConfig

        return read(SpoolConfig(f"sqlite:{self._place}/spool"))

    async def _timed(self, condition: Callable[[], bool], what: str) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(wait_for, condition, what, 120)
        return round(loop.time() - began, 1)

    async def _give_account(self, upstream: Upstream, driver: Driver) -> Account:
        await self._timed(lambda: self._status()["pending"] == 0, "the last beacons to be delivered")
        status, report, names = self._status(), upstream.ask("report"), set(upstream.ask("names"))
        ended = status["delivered"] + sum(status["dropped"].values()) + status["dead"]
        logged = (self._place / "serve.log").read_text()
        return {
            **self._account,
            "answered": len(driver.answered),
            "missing": len(set(driver.answered) - names),
            "copies": report["copies"],
            "copies_that_differ": report["differing"],
            "refused": driver.refused,
            "connections_broken": driver.broken,
            "ledger_off": status["received"] - ended - status["pending"],
            "key_in_the_log": any(key in logged for key in KEYS),
            "gif_p99_ms": {phase: quantile(took, 0.99) for phase, took in driver.took_ms.items()},
            "status": {name: status[name] for name in ("received", "delivered", "dropped", "dead", "pending", "refused")},
        }
