"""Boards: C code and a static library that need no runtime of ours."""
