"""The control server: decides who serves which slot and tells every Envoy over xDS."""
