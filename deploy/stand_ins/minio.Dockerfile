# Stands in for MinIO's own image, with the program that `make minio` builds from source.
FROM python:3.11-slim
COPY minio /usr/local/bin/minio
VOLUME /data
ENTRYPOINT ["minio"]
