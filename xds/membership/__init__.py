"""Who is alive, and the pool as a control server sees it at one moment."""
