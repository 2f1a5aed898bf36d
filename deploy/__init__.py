"""Runs Understudy: command line, local pools, demo, drills, examples, Kubernetes."""
