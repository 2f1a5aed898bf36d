"""What Understudy is on Kubernetes: manifests as plain data, and what they must hold.

``render`` puts a tree of files together from a ``Plan``; the modules beside it build one part each.
"""
