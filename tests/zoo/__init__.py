"""The whole compiler on the architectures that people use, through both hosts."""
