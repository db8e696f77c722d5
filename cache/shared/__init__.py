"""One cache over the memory of several ranks.

Every row has an owner among the ranks, by a hash of its id. A rank announces its batches to the
owners of their rows; an owner plans them as a cache of one process does, round by round, where a
round is one batch of every rank (``rounds``), keeps the rows that it read in places that no rank
still reads (``places``), and tells who asked where they lie or sends them (``engine``). Whose
memory that is, and how others reach it, is one object's affair (``memory``, ``device_rows``).
Nobody waits for a rank that is at most ``prefetch`` rounds behind. What nobody announced is asked
of the owners as things are (``asks``).

Source of the idea: LSM-GNN (Park et al., 2024).
"""
