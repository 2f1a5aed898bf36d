"""Certificates: mTLS contexts that follow their files, and the names in them."""
