"""``gnnsys cluster``: clusters of nodes by contrastive training, without labels.

``graph`` opens the dataset; ``trainer`` trains one seed, over the whole graph or over sampled
batches (``batches``); ``encoders`` has what embeds nodes; ``metrics`` compares clusters with
classes; ``runs`` does all seeds and writes their result, ``checkpoint`` has how far a run is,
``assign`` clusters new nodes, ``picture`` draws.
Invariants: labels decide nothing unless ``--select labels`` says so; the features of a batch come
from the dataset's store, so that they may lie in a file; a run that is resumed ends with the bits
of one left alone.
"""
