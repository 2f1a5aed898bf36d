"""Generates the templates of the Helm chart in deploy/chart from the renderer: `make chart`."""
