"""Epochs packed before they run: recorded plans, and the rows they read one after another on disk.

Batches of a coming epoch are known, since they are drawn by counters. They are planned over all of
the epoch (``plans``), and the rows that the plans read are written in the order in which batches
need them (``rows``). The engine then carries the recorded plans out (``planner``) and reads each
batch's rows from one place (``store``).

Source of the idea: DiskGNN (Liu et al., 2024), and Ginex (Park et al., 2022) for planning over many
batches by Belady's rule.
"""
