"""Options of the commands, one file for each: a dataclass is the command line and the API.

Imports tyro (for its markers) and nothing that is large, since ``gnnsys --help`` reads it all.
"""
