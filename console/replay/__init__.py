"""`heliograph replay` and `heliograph dlq redrive`: what was published once is published again, chosen, counted, recorded."""
