# syntax=docker/dockerfile:1
# docker build -t beacon-proxy .
# docker run -e BEACON_PROXY_API_KEY=… -p 127.0.0.1:8000:8000 -v beacons:/spool beacon-proxy

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY proxy ./proxy
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home beacon && install -d -o beacon -m 700 /spool
COPY --from=build /app /app
USER beacon
ENV PATH=/app/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    BEACON_PROXY_SPOOL=sqlite:/spool \
    BEACON_PROXY_HOST=0.0.0.0 \
    BEACON_PROXY_TRUSTED_PROXIES=loopback,private
VOLUME /spool
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/healthz', timeout=2)"]
ENTRYPOINT ["beacon-proxy"]
CMD ["serve"]
