"""What all pages, pictures and tables share: drawing, style, numbers, tables, templates.

Imports ``system``, matplotlib, jinja2 and rich. Invariant: knows nothing of what is drawn.
"""
