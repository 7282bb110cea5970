"""FinePhys: physics-guided generation of fine-grained human action video."""

# Here and not in the package's metadata: `ray job submit --working-dir .` brings the code without installing it.
__version__ = "0.1.0"
