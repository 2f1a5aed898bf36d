"""What lets the proxies of an Istio mesh route by slots: resources as plain data (docs/istio.md).

``tree`` puts the files together from a ``Plan``; ``patches`` has the fragments of Envoy configuration, ``objects`` the
resources around them.
"""
