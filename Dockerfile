# syntax=docker/dockerfile:1
# One image for worker and producer. The default torch wheels bring their own CUDA runtime; the host needs
# the NVIDIA driver and the container toolkit only. For a machine without a GPU, and an image that is a
# quarter of the size:  docker compose --profile cpu build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.12-slim-bookworm

ARG TORCH_INDEX=""
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY requirements.lock ./
# Each file must have one of the hashes in requirements.lock. Those of another index than PyPI have others: there, torch
# is installed by its version, and only the rest by hashes.
RUN if [ -z "$TORCH_INDEX" ]; then pip install --require-hashes --requirement requirements.lock; else \
      pip install --index-url "$TORCH_INDEX" $(sed -nE 's/^(torch(vision)?==[^ ]+).*/\1/p' requirements.lock) \
   && awk '/^[^ ]/ {keep = !/^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/} keep' requirements.lock > rest.lock \
   && pip install --require-hashes --no-deps --requirement rest.lock; fi

# Not root; the ids are set so that volumes and the host's posters can be given to them.
RUN groupadd --gid 10001 posters && useradd --uid 10001 --gid 10001 --create-home posters \
 && mkdir -p /app/data /app/vectors /app/posters /home/posters/.cache \
 && chown -R posters:posters /app/data /app/vectors /home/posters/.cache
COPY worker ./worker
COPY producer ./producer
COPY config.json ./
USER posters

# celery answers SIGTERM by finishing its batch; see stop_grace_period in docker-compose.yml
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "worker"]
