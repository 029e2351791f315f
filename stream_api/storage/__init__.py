"""The object storage: objects, downloads that resume, manifests. Knows S3's protocol, not whose store it is."""
