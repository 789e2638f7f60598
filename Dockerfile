# edgeq for CI and for workers of a fleet: docker build -t edgeq . && docker run --rm edgeq
# It runs without root, and with a read-only root file system: docker run --read-only --tmpfs /tmp -v "$PWD":/project …
FROM python:3.11-slim-bookworm

# QEMU and the cross compiler verify ARM64 targets
RUN apt-get update \
 && apt-get install -y --no-install-recommends qemu-user g++-aarch64-linux-gnu libc6-dev-arm64-cross \
 && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md /opt/edgeq/
COPY edgeq /opt/edgeq/edgeq
COPY targets /opt/edgeq/targets
COPY devices /opt/edgeq/devices
# torch for the CPU alone; with --build-arg TORCH_BACKEND= it is the index's default, which brings 4 GB of CUDA
ARG TORCH_BACKEND=cpu
RUN pip install --no-cache-dir uv==0.13.8 \
 && uv pip install --system --no-cache ${TORCH_BACKEND:+--torch-backend $TORCH_BACKEND} \
    '/opt/edgeq[executorch,torchscript,onnx,digits,s3,cluster]'

RUN useradd --uid 1000 --create-home edgeq && mkdir /project && chown edgeq /project
USER 1000
WORKDIR /project
ENV EDGEQ_CACHE_DIR=/tmp/edgeq-cache

ENTRYPOINT ["edgeq"]
CMD ["doctor"]
