"""Many cases in one call: `diffsuite batch DOMAIN VERB INPUT... -o DIR`."""
