"""How good features are: online kNN and collapse diagnostics while a run trains, probes afterwards."""
