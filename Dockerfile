# Two images from one file:
#   docker build --target api    -t denoised-api .       the HTTP front end, with the extras [server,s3]
#   docker build --target worker -t denoised-worker .    a worker, with the extras [worker,s3]
# requirements.lock pins every version.

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


# One requirements file per extra. The images install these before the wheel, so that a change of the code does not
# install the dependencies again.
FROM python AS requirements
COPY pyproject.toml ./
RUN python -c "import pathlib, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; [pathlib.Path(f'{extra}.txt').write_text('\n'.join(p['dependencies'] + p['optional-dependencies'][extra] + p['optional-dependencies']['s3'])) for extra in ('server', 'worker')]"


FROM python AS base
RUN useradd --system --uid 10001 --home-dir /var/lib/denoised --create-home denoised
ENV DENOISED_DATA_DIR=/var/lib/denoised
COPY requirements.lock ./
STOPSIGNAL SIGTERM


FROM base AS worker
# The worker compiles its kernels for the processor it runs on. Without a compiler it uses slower kernels.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# The lock file pins the version of torch. On x86-64, pip chooses a build for CPU and GPU with several GB. For a small
# image without GPU support, pass the URL of a CPU wheel: --build-arg TORCH='torch @ https://…'
ARG TORCH=torch
COPY --from=requirements /srv/denoised/worker.txt ./
RUN pip install --constraint requirements.lock --requirement worker.txt "${TORCH}"
# --no-index: fails if the extra needs a package that is not installed yet.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-index "$(echo /wheels/*.whl)[worker,s3]"
USER denoised
# The worker is the container's only process, so the container's state already says whether it runs. Whether it serves
# is known to the API, which reads the worker's lease: GET /readyz.
HEALTHCHECK NONE
CMD ["denoised", "worker"]


FROM base AS api
COPY --from=requirements /srv/denoised/server.txt ./
RUN pip install --constraint requirements.lock --requirement server.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-index "$(echo /wheels/*.whl)[server,s3]"
USER denoised
# Set DENOISED_API_KEYS, or DENOISED_TRUST_NETWORK if the port is published only on this machine.
ENV DENOISED_HOST=0.0.0.0 DENOISED_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['DENOISED_PORT'] + '/healthz', timeout=3)"]
CMD ["denoised", "api"]
