#!/bin/sh
# Fill /opt/orders, which has no pip: `image.sh libraries LOCK`, then `image.sh project`. Runs in the Dockerfile.
set -eu
pip="/opt/build/bin/pip --python /opt/orders/bin/python install --quiet --no-cache-dir --no-warn-script-location"
case "$1" in
  libraries)
    python -m venv --without-pip /opt/orders
    $pip --require-hashes --requirement "$2"
    # Libraries that auditwheel has patched, in folders `….libs`, may not survive `strip`.
    find /opt/orders -name '*.so' -not -path '*.libs/*' -exec strip --strip-unneeded {} +
    ;;
  project)
    $pip --no-deps --no-index /opt/wheels/*.whl
    # The software bill of materials: what is installed, in CycloneDX.
    /opt/build/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      --mc-type application --output-file /opt/orders/sbom.cdx.json /opt/orders/bin/python
    ;;
esac
