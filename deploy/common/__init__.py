"""What commands and their machinery share: errors, options, addresses of a local pool, safe printing."""
