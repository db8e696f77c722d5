"""What all pages and pictures share: drawing, style, numbers.

Imports the standard library and matplotlib. Invariant: knows nothing of what is drawn.
"""
