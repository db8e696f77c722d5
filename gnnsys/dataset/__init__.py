"""Dataset folders: what their files say, writing them, opening them; PyG's datasets by name.

Stands on the loaders (topology) and unified tensors; knows nothing of converting, generating or
training. Invariant: a folder is whole or not there, and is never written to once it is.
"""
