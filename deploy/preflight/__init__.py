"""``understudy verify --preflight``: whether manifests, an etcd and a cluster have what a pool will need.

Each module judges one ingredient and gives findings; what is judged is data, so that the judging is pure.
"""
