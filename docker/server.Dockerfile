# The model's server: vLLM-Omni 0.30.0 (CUDA 13), planned, started and watched by `python -m omni_app serve`.
#   docker build -f docker/server.Dockerfile -t omni-server .
# Another base with vLLM 0.30.0 works too, such as the aarch64 one that compose.thor.yaml names.
ARG BASE=vllm/vllm-omni:v0.30.0@sha256:fc77cfaac7b1b43c30cbf32eaea214864434c6e0f303e6e9eb9f64104241a994
FROM ${BASE}
USER 0:0
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY requirements.txt requirements-serve.txt /opt/omni/
COPY omni_app /opt/omni/omni_app
# A base without vLLM-Omni gets it, as pinned; one with another vLLM is refused here rather than at the first start.
RUN if ! python3 -c 'import importlib.metadata as m; m.version("vllm-omni")'; then \
      uv pip install --system --no-cache --constraint /opt/omni/requirements-serve.txt vllm-omni; \
    fi && \
    python3 -c 'import importlib.metadata as m; assert {m.version("vllm"), m.version("vllm-omni")} == {"0.30.0"}'
# What watches the server has an environment of its own, with the few packages that it imports.
RUN python3 -m venv /opt/omni/.venv --without-pip && \
    uv pip install --python /opt/omni/.venv/bin/python --no-cache --constraint /opt/omni/requirements.txt \
      pydantic-settings platformdirs httpx filelock && \
    mkdir -p /opt/server/bin /data /cache && chown 1000:1000 /data /cache && \
    for name in vllm python3; do \
      printf '#!/bin/sh\nexec %s "$@"\n' "$(command -v "$name")" > "/opt/server/bin/${name%3}"; \
    done && chmod 755 /opt/server/bin/*
WORKDIR /opt/omni
# Beside the packages a read-only root keeps byte code from being written, and its lack costs 40 s of every start.
ENV PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX=/cache/python HOME=/cache \
    OMNI_DATA_DIR=/data OMNI_CACHE_DIR=/cache OMNI_SERVE_VENV=/opt/server OMNI_SERVE_HOST=0.0.0.0
USER 1000:1000
VOLUME ["/data", "/cache"]
EXPOSE 8091
HEALTHCHECK --interval=15s --timeout=10s --start-period=20m \
    CMD ["/opt/omni/.venv/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8091/health', timeout=8)"]
ENTRYPOINT ["/opt/omni/.venv/bin/python", "-m", "omni_app", "serve", "/model"]
