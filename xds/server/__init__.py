"""An xDS server as a library, of use alone: cache, streams, order, status. Imports nothing else of ours."""
