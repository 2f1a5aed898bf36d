"""Makes Envoy's clusters, endpoints, routes and listeners from a view of the pool. Pure."""
