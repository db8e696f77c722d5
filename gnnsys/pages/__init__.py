"""What all pages and pictures share: drawing, style, numbers, templates.

Imports the standard library, matplotlib and jinja2. Invariant: knows nothing of what is drawn.
"""
