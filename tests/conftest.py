"""Makes this folder's own modules (made_clips.py) importable from the tests below it: pytest puts it on the path."""
