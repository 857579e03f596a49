# One region in a container: PostgreSQL 15 with pg_residency, run by init.sh.
# docker-compose.yml starts three of them and joins them.

FROM debian:12 AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        gcc libc6-dev make postgresql-15 postgresql-server-dev-15
COPY . /src
RUN make -C /src clean \
 && make -C /src -j4 PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config all \
 && make -C /src PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config DESTDIR=/out install

FROM debian:12
# The package would make a server of its own; this image's servers live in /data.
RUN mkdir -p /etc/postgresql-common/createcluster.d /data \
 && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/pg_residency.conf \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql-15 \
 && rm -rf /var/lib/apt/lists/* \
 && chown postgres: /data
COPY --from=build /out/ /
COPY init.sh /opt/pg_residency/
COPY examples /opt/pg_residency/examples/
USER postgres
ENV RESIDENCY_DATA=/data \
    RESIDENCY_LISTEN=* \
    RESIDENCY_PORTS=5432,5432,5432 \
    RESIDENCY_HBA="host all all all scram-sha-256"
VOLUME /data
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["/opt/pg_residency/init.sh"]
