"""Renders resources that make the proxies of an Istio mesh route by slots. Pure; see docs/istio.md."""
