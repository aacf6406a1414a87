# `openlance serve` in a container; docs/howto/serving.md has the commands.
#   docker build --target cpu -t openlance:cpu .        docker build --target cuda -t openlance:cuda .
ARG PYTHON=3.13

# What is installed goes into one folder, which alone the images take.
FROM python:${PYTHON}-slim AS source
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv /opt/openlance

FROM source AS build-cpu
RUN /opt/openlance/bin/pip install --no-cache-dir -c constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu '.[serve]'

# PyTorch's wheels bring CUDA's libraries along; the driver is the host's (NVIDIA Container Toolkit).
FROM source AS build-cuda
RUN /opt/openlance/bin/pip install --no-cache-dir -c constraints.txt '.[serve]'

FROM python:${PYTHON}-slim AS server
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin openlance \
    && install -d -o openlance -g openlance /data /data/outputs /data/hub
ENV PATH=/opt/openlance/bin:$PATH HF_HOME=/data/hub PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME ["/data/outputs", "/data/hub"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --start-interval=2s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Without a shell, so that the server itself hears SIGTERM. What follows the image's name in `docker run` takes the
# place of the last line.
ENTRYPOINT ["openlance", "serve", "--host", "0.0.0.0", "--port", "8000", "--folder", "/data/outputs"]
CMD ["--model", "nano"]

FROM server AS cuda
COPY --from=build-cuda /opt/openlance /opt/openlance
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM server AS cpu
COPY --from=build-cpu /opt/openlance /opt/openlance
