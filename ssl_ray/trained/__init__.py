"""What is done with trained models and with the record of runs: judge, take their features away, look, compare."""
