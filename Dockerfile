# Two images from one file:
#   docker build --target api    -t denoised-api .       HTTP; no torch in it
#   docker build --target worker -t denoised-worker .    one running batch
# Every version is the one in requirements.lock.

FROM python:3.12-slim AS python
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /srv/denoised


FROM python AS wheel
COPY requirements.lock ./
RUN pip install --constraint requirements.lock hatchling
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .


# The packages stand in layers of their own, below the project: a change of its code installs none of them again.
FROM python AS base
RUN useradd --system --uid 10001 --home-dir /var/lib/denoised --create-home denoised
ENV DENOISED_DATA_DIR=/var/lib/denoised
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > dependencies.txt \
 && pip install --constraint requirements.lock --requirement dependencies.txt
STOPSIGNAL SIGTERM


FROM base AS worker
# The worker compiles its network's kernels for the processor it finds; without a compiler it is slower.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# The lock says which version of torch; the build that pip takes by itself on x86-64 runs on CPU and GPU and has several
# GB. For a small image, CPU only, give the address of such a wheel: --build-arg TORCH='torch @ https://…'
ARG TORCH=torch
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['worker'], sep='\n')" \
      > worker.txt \
 && pip install --constraint requirements.lock --requirement worker.txt "${TORCH}"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
USER denoised
# No check of its own: the worker is the container's one program, and a check of that program says nothing that the
# container's state does not. Whether it serves is told by the API, which reads the worker's lease: GET /readyz.
HEALTHCHECK NONE
CMD ["denoised", "worker"]


FROM base AS api
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
USER denoised
# Wants DENOISED_API_KEYS, or DENOISED_TRUST_NETWORK where the port is published to this machine alone.
ENV DENOISED_HOST=0.0.0.0 DENOISED_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['DENOISED_PORT'] + '/healthz', timeout=3)"]
CMD ["denoised", "api"]
