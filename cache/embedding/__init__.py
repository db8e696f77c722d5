"""Trainable rows past memory, each with the state of its optimiser in one record.

``EmbeddingStore`` (``store``) keeps the records in files (``files``) and those in use in slots of a
write-back cache (``slots``), whose directory (``directory``) knows where each row is.

Invariants: of every row there is one newest record, and the directory says where: in a slot, in
the log of changes, or in the table. Records on disk are never overwritten between two versions: the
table holds the last version whole, and changes are appended to the log. So rows that were read
ahead are used only where the directory still names the place they were read at, an optimiser's
update is never lost to an eviction or a read ahead, and a killed process leaves a whole version.
"""
