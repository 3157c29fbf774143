# syntax=docker/dockerfile:1
# docker build --tag beacon-proxy .
# docs/docker.md says how to run it.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY proxy ./proxy
COPY deploy/nginx ./deploy/nginx
# The environment holds no pip: what runs in production installs nothing.
RUN python -m venv --without-pip /app \
    && python -m pip --python /app/bin/python install --no-cache-dir --disable-pip-version-check '.[nats]'

FROM python:3.13-slim
RUN groupadd --gid 10001 beacon \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /spool --shell /usr/sbin/nologin beacon \
    && install --directory --owner 10001 --group 10001 --mode 700 /spool
COPY --from=build /app /app
USER 10001:10001
ENV PATH=/app/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    BEACON_PROXY_SPOOL=sqlite:/spool \
    BEACON_PROXY_HOST=0.0.0.0 \
    BEACON_PROXY_TRUSTED_PROXIES=loopback,private
VOLUME /spool
WORKDIR /spool
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('BEACON_PROXY_ADMIN_PORT', '8001') + '/readyz', timeout=2.5)"]
ENTRYPOINT ["beacon-proxy"]
CMD ["serve"]
LABEL org.opencontainers.image.title="beacon-proxy" \
      org.opencontainers.image.description="A first-party beacon proxy: the GIF at once, the beacon safe on disk, the API key on the server" \
      org.opencontainers.image.licenses="MIT"
