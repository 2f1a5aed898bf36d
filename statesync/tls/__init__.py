"""Certificates: mTLS contexts that follow their files, the names in them, and until when they are valid."""
