# The Order Service as one image: `worker` by default, or `projector`, `web`, or any other command of order-service.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/orders
COPY requirements.lock ./
RUN /opt/orders/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY schemas ./schemas
COPY order_service ./order_service
RUN /opt/orders/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin orders \
    && install --directory --owner=orders /data
COPY --from=build /opt/orders /opt/orders
ENV PATH=/opt/orders/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORDERS_DATA_DIR=/data \
    ORDERS_LOG=json
# By number, so that Kubernetes can see that it is not root.
USER 10001
WORKDIR /data
VOLUME /data
# HTTP of `web`; health and metrics. They bind to loopback; ORDERS_HOST=0.0.0.0 opens them to other containers.
EXPOSE 8080 9100
# Live, not ready: an orchestrator ends what is unhealthy, and ending a worker does not bring Kafka back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client, os, sys; admin = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('ORDERS_ADMIN_PORT', '9100')), timeout=3); admin.request('GET', '/health/live'); sys.exit(admin.getresponse().status != 200)"]
ENTRYPOINT ["order-service"]
CMD ["worker"]
