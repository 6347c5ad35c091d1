"""The passes. Each file is one noun; each class a frozen dataclass whose fields are its options."""
