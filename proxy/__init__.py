"""The member's side: the sidecar beside an application, and the Envoy it may come with."""
