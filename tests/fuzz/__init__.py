"""A fuzzer: random networks from the table of rules, held against the law and the oracle."""
