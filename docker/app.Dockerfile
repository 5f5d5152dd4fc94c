# The app: page, API and the builtin engine, with its models inside. x86-64 and aarch64.
#   docker build -f docker/app.Dockerfile -t omni-app .
# The digest is that of the multi-platform index, so the same line serves both.
ARG BASE=python:3.12.15-slim-trixie@sha256:05cda9777409a9c3ffddd94a4c476b79f0769a0b4857f0c7ed9226b6800b0d6f

FROM ${BASE} AS build
COPY requirements.txt /build/
RUN python -m venv /opt/omni/.venv && \
    /opt/omni/.venv/bin/python -m pip install --no-cache-dir --only-binary :all: -r /build/requirements.txt
COPY app.py README.md LICENSE requirements.txt requirements-serve.txt /opt/omni/
COPY omni_app /opt/omni/omni_app
COPY quantize /opt/omni/quantize
COPY assets /opt/omni/assets
WORKDIR /opt/omni
# The models of the builtin engine; python byte code too, as nothing can be written there later.
RUN .venv/bin/python -m omni_app.engines.builtin.assets --cache-dir /cache && \
    .venv/bin/python -m compileall -q omni_app quantize && mkdir /data

FROM ${BASE}
COPY --from=build /opt/omni /opt/omni
COPY --from=build --chown=1000:1000 /cache /cache
COPY --from=build --chown=1000:1000 /data /data
WORKDIR /opt/omni
ENV PATH=/opt/omni/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    OMNI_HOST=0.0.0.0 OMNI_DATA_DIR=/data OMNI_CACHE_DIR=/cache
USER 1000:1000
VOLUME ["/data", "/cache"]
EXPOSE 7860
HEALTHCHECK --interval=15s --timeout=5s --start-period=3m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "omni_app", "run"]
