"""Webhooks: what is sent when an upload has ended, signed, to addresses of the public internet only."""
