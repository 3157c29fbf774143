"""The upstream port: `send(request) -> Answer`, and its two engines. No engine raises for what the network or the vendor does.

Both send the same bytes: no redirects followed, no cookies kept, no conditional headers, no body decoded.
"""

import asyncio
import logging
from datetime import timedelta
from typing import Protocol

from proxy import __version__
from proxy.delivery import Answer
from proxy.forward.sign import UpstreamRequest

USER_AGENT = f"beacon-proxy/{__version__}"
FORM = "application/x-www-form-urlencoded"
ENGINES = ("pyreqwest", "httpx")


class Upstream(Protocol):
    """One client, many requests in flight."""

    async def send(self, request: UpstreamRequest) -> Answer:
        """One attempt, within the attempt timeout. A failure without a status is an Answer with `failure` set."""

    async def close(self) -> None:
        """Drop the connections."""


def open_upstream(engine: str, timeout_s: float, connections: int) -> Upstream:
    """The engine of that name, one of ENGINES."""
    return PyreqwestUpstream(timeout_s, connections) if engine == "pyreqwest" else HttpxUpstream(timeout_s, connections)


class PyreqwestUpstream:
    """The fast engine (Rust, reqwest): 27 µs of processor time a request where httpx takes 1,880."""

    def __init__(self, timeout_s: float, connections: int) -> None:
        from pyreqwest.client import ClientBuilder

        self._client = (
            ClientBuilder()
            .timeout(timedelta(seconds=timeout_s))
            .user_agent(USER_AGENT)
            .follow_redirects(False)
            .default_cookie_store(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .referer(False)
            .no_proxy()
            .pool_max_idle_per_host(connections)
            .build()
        )

    async def send(self, request: UpstreamRequest) -> Answer:
        try:
            if request.body is None:
                call = self._client.get(request.url)
            else:
                call = self._client.post(request.url).header("content-type", FORM).body_bytes(request.body)
            response = await call.build().send()
            return Answer(response.status, retry_after=response.get_header("retry-after") or "")
        except Exception as error:  # an address that is none, or whatever else keeps this request from going out
            return Answer(failure=type(error).__name__)

    async def close(self) -> None:
        await self._client.close()


def _no_key(record: logging.LogRecord) -> bool:
    return "_k=" not in record.getMessage()


class HttpxUpstream:
    """The portable engine, for platforms without the other's wheel."""

    def __init__(self, timeout_s: float, connections: int) -> None:
        from http.cookiejar import DefaultCookiePolicy

        import httpx

        logging.getLogger("httpx").addFilter(_no_key)  # it logs each request's whole address
        self._client = httpx.AsyncClient(
            timeout=timeout_s,
            headers={"user-agent": USER_AGENT, "accept": "*/*"},
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        self._timeout_s = timeout_s  # httpx limits each read, not the whole attempt
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for default in ("accept-encoding", "connection"):
            del self._client.headers[default]

    async def send(self, request: UpstreamRequest) -> Answer:
        try:
            method, headers = ("GET", {}) if request.body is None else ("POST", {"content-type": FORM})
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(method, request.url, content=request.body, headers=headers) as response,
            ):
                async for _ in response.aiter_raw():
                    pass
                return Answer(response.status_code, retry_after=response.headers.get("retry-after", ""))
        except Exception as error:
            return Answer(failure=type(error).__name__)

    async def close(self) -> None:
        await self._client.aclose()
