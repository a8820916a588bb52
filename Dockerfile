# Two images: the service (the last stage, so the default), and `--target cli` with the SDK and the command line only.
# Pass a digest as PYTHON_IMAGE to pin the base: python@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim

FROM $PYTHON_IMAGE AS tools
WORKDIR /src
# `strip` halves the libraries of the wheels. It stays in the stages that build.
RUN apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends binutils
COPY requirements-image.lock ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --no-cache-dir --require-hashes --requirement requirements-image.lock

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY schemas ./schemas
COPY order_service ./order_service
RUN /opt/build/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /opt/wheels .

FROM tools AS build-cli
COPY tools/image.sh requirements-cli.lock ./
RUN sh image.sh libraries requirements-cli.lock
COPY --from=wheel /src/pyproject.toml ./
COPY --from=wheel /opt/wheels /opt/wheels
RUN sh image.sh project

FROM $PYTHON_IMAGE AS cli
# An image without tools to install or to build. The user has a number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin orders \
    && python -m pip uninstall --quiet --yes --root-user-action=ignore pip setuptools wheel
COPY --from=build-cli /opt/orders /opt/orders
ENV PATH=/opt/orders/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
ENTRYPOINT ["order-service"]
CMD ["--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Order Service command line" \
      org.opencontainers.image.description="The SDK and the command line of the Order Service." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.created=$CREATED

FROM tools AS build
COPY tools/image.sh requirements.lock ./
RUN sh image.sh libraries requirements.lock
COPY --from=wheel /src/pyproject.toml ./
COPY --from=wheel /opt/wheels /opt/wheels
RUN sh image.sh project

FROM $PYTHON_IMAGE AS service
# /data is the only folder that is written to. Group 0 may write to it too: some clusters choose any user id.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin orders \
    && python -m pip uninstall --quiet --yes --root-user-action=ignore pip setuptools wheel \
    && install --directory --owner=orders --group=root --mode=0775 /data
COPY --from=build /opt/orders /opt/orders
ENV PATH=/opt/orders/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORDERS_DATA_DIR=/data \
    ORDERS_LOG=json
USER 10001
WORKDIR /data
# HTTP of `web`; health and metrics. They bind to loopback; ORDERS_HOST=0.0.0.0 opens them to other containers, and
# ORDERS_ADMIN_HOST health and metrics alone.
EXPOSE 8080 9100
# Live, not ready: an orchestrator ends what is unhealthy, and ending a worker does not bring Kafka back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client, os, sys; admin = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('ORDERS_ADMIN_PORT', '9100')), timeout=3); admin.request('GET', '/health/live'); sys.exit(admin.getresponse().status != 200)"]
ENTRYPOINT ["order-service"]
CMD ["worker"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Order Service" \
      org.opencontainers.image.description="A Kafka-native order service: the commands of an order are decided in log order, each exactly once." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.created=$CREATED
