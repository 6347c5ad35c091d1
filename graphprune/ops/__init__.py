"""What every op kind is: what it does to axes (rules) and everything else (traits)."""
