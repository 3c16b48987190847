# docker build --build-arg EXTRAS=images,analysis --tag batchcl .     docs/containers.md
# Both stages need the same Python: the environment links to it.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# Comma-separated extras of pyproject.toml: images, analysis, report, otel, emulator.
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY docs/troubleshooting.md docs/troubleshooting.md
RUN python -m venv --without-pip /opt/batchcl
RUN python -m pip --python /opt/batchcl/bin/python install --no-cache-dir --disable-pip-version-check ".${EXTRAS:+[$EXTRAS]}"

FROM ${BASE}
COPY --from=build /opt/batchcl /opt/batchcl
ENV PATH=/opt/batchcl/bin:$PATH
WORKDIR /data
USER 10001:10001
# The process is PID 1 and receives the container's signals.
ENTRYPOINT ["batchcl"]
CMD ["--help"]
