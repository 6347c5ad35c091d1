"""One tensor axis up to equality (Dim), which of its positions survive (Index), and the notation of axes."""
