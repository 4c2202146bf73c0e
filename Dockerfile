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
COPY requirements.txt constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch torchvision; fi \
 && if [ -n "$TORCH_INDEX" ]; then grep -vE '^torch(vision)?==' constraints.txt > limits.txt; else cp constraints.txt limits.txt; fi \
 && pip install --requirement requirements.txt --constraint limits.txt

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
