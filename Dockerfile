# shoal for a head or a node: docker build --tag shoal . ; docker run shoal serve …
# The first stage has a compiler and Node.js and builds the wheel; the second has neither.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make python3-dev python3-venv
WORKDIR /src
COPY . /src
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --constraint constraints.txt --upgrade pip
RUN make console VENV=/opt/build
RUN SHOAL_REQUIRE_KERNELS=1 /opt/build/bin/pip wheel --no-cache-dir --build-constraint constraints.txt --no-deps --wheel-dir /dist .
RUN python3 -m venv --without-pip /opt/shoal && /opt/build/bin/pip --python /opt/shoal/bin/python install --no-cache-dir --no-compile --constraint constraints.txt /dist/shoal-*.whl

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 python3 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/shoal --create-home shoal
COPY --from=build /opt/shoal /opt/shoal
COPY container/health.py /opt/shoal/health.py
ENV PATH=/opt/shoal/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 SHOAL_CACHE=/var/lib/shoal/cache
USER shoal
WORKDIR /var/lib/shoal
# Models, keys, certificates and requests under way: the home folder, so whatever else shoal keeps there.
VOLUME /var/lib/shoal
EXPOSE 8000 7420 7421
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m CMD ["python", "/opt/shoal/health.py"]
ENTRYPOINT ["shoal"]
CMD ["--help"]
